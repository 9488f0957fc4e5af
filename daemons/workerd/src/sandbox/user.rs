//! As whom a command runs: never as root, by whatever name an image calls it.

/// Who runs where an image names nobody, or root: `nobody` and `nogroup` in Debian.
pub(super) const UNPRIVILEGED: &str = "65534:65534";

/// What an image's `USER` stands for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stated {
    /// It says so itself, in numbers.
    As(String),
    /// Only the image's own /etc/passwd and /etc/group tell.
    Named,
}

/// Docker reads a number as Go does: "00", "+0" and "-0" are root too.
fn number(text: &str) -> Option<i64> {
    text.trim().parse().ok()
}

fn parts(user: &str) -> (&str, &str) {
    let (name, group) = user.split_once(':').unwrap_or((user, ""));
    (name.trim(), group.trim())
}

pub(super) fn stated(user: &str) -> Stated {
    let (name, group) = parts(user);
    match number(name) {
        _ if name.is_empty() || name == "root" => Stated::As(UNPRIVILEGED.into()),
        Some(0) => Stated::As(UNPRIVILEGED.into()),
        Some(_) if group.is_empty() || number(group).is_some() => Stated::As(user.trim().into()),
        _ => Stated::Named,
    }
}

/// The numbers behind a name, so that Docker looks no name up again. A number that cannot be read is root's, as runc takes
/// it. `None`: there is no such user or group. Further groups that the image gives the user are left out.
pub(super) fn resolved(user: &str, passwd: &str, groups: &str) -> Option<String> {
    let (name, group) = parts(user);
    let find = |file: &str, name: &str| {
        let line = file.lines().map(str::trim).find(|line| line.split(':').next() == Some(name))?;
        let at = |index: usize| line.split(':').nth(index).and_then(number).unwrap_or(0);
        Some((at(2), at(3)))
    };
    let (uid, own_gid) = match number(name) {
        Some(uid) => (uid, 0),
        None => find(passwd, name)?,
    };
    let gid = match number(group) {
        Some(gid) => gid,
        None if group.is_empty() => own_gid,
        None => find(groups, group)?.0,
    };
    Some(if uid == 0 { UNPRIVILEGED.into() } else { format!("{uid}:{gid}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn root_and_nobody_in_particular_become_an_unprivileged_user_and_another_stays() {
        for root in ["", "root", "0", "0:0", "root:adm", "00", "000:5", "-0", "+0", " 0", "0 :5"] {
            assert_eq!(stated(root), Stated::As(UNPRIVILEGED.into()), "{root}");
        }
        assert_eq!(stated("1000"), Stated::As("1000".into()));
        assert_eq!(stated("1000:5"), Stated::As("1000:5".into()));
        for named in ["app", "app:5", "app:app", "1000:app", "0x0", "toor"] {
            assert_eq!(stated(named), Stated::Named, "{named}");
        }
    }

    #[test]
    fn invariant_10_no_name_in_an_image_makes_a_command_root() {
        let passwd = "root:x:0:0:root:/root:/bin/sh\ntoor:x:0:0::/:/bin/sh\nodd:x:none:5::/:\nshort\napp:x:1000:1001::/app:\n";
        let groups = "root:x:0:\nstaff:x:50:app\n";
        for root in ["toor", "toor:staff", "odd", "short"] {
            assert_eq!(resolved(root, passwd, groups).as_deref(), Some(UNPRIVILEGED), "{root}");
        }
        assert_eq!(resolved("app", passwd, groups).as_deref(), Some("1000:1001"));
        assert_eq!(resolved("app:staff", passwd, groups).as_deref(), Some("1000:50"));
        assert_eq!(resolved("7:staff", passwd, groups).as_deref(), Some("7:50"));
        assert_eq!(resolved("nosuch", passwd, groups), None);
        assert_eq!(resolved("app:nosuch", passwd, groups), None);
    }
}
