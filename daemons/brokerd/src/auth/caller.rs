//! What a token allows.

use std::{net::IpAddr, sync::Arc};

use codering_core::{Code, Error, ProjectName};
use prometheus_client::metrics::counter::Counter;

use crate::ledger::{Role, Token};

/// Someone who has shown a live token.
#[derive(Debug, Clone)]
pub struct Caller {
    token: Arc<Token>,
    from: IpAddr,
    denials: Counter,
}

impl Caller {
    pub(super) fn new(token: Arc<Token>, from: IpAddr, denials: Counter) -> Self {
        Self { token, from, denials }
    }

    /// The token, which holds no secret.
    pub fn token(&self) -> &Token {
        &self.token
    }

    /// The token's name, for records such as a job's `submitted_by`.
    pub fn name(&self) -> &str {
        &self.token.name
    }

    /// Where the call comes from.
    pub fn address(&self) -> IpAddr {
        self.from
    }

    /// The projects that it is limited to; `None`: all.
    pub fn projects(&self) -> Option<&[ProjectName]> {
        (!self.token.projects.is_empty()).then_some(&self.token.projects)
    }

    /// Whether it may read of this project.
    pub fn sees(&self, project: &ProjectName) -> bool {
        self.projects().is_none_or(|projects| projects.contains(project))
    }

    /// Allows what needs at least this role in this project.
    ///
    /// # Errors
    /// [`Code::AuthDenied`].
    pub fn may(&self, needed: Role, project: &ProjectName) -> Result<(), Error> {
        if !self.sees(project) {
            return self.denied(needed, Some(project), &format!("is limited to {}", self.limits()));
        }
        if rank(self.token.role) < rank(needed) {
            let what = format!("is {} of project {project}", shown(self.token.role));
            return self.denied(needed, Some(project), &what);
        }
        Ok(())
    }

    /// Allows what needs at least this role and concerns no one project: workers, tokens, new projects.
    ///
    /// # Errors
    /// [`Code::AuthDenied`].
    pub fn may_everywhere(&self, needed: Role) -> Result<(), Error> {
        if self.projects().is_some() {
            return self.denied(needed, None, &format!("is limited to {}", self.limits()));
        }
        if rank(self.token.role) < rank(needed) {
            return self.denied(needed, None, &format!("is {}", shown(self.token.role)));
        }
        Ok(())
    }

    fn limits(&self) -> String {
        let names: Vec<_> = self.token.projects.iter().map(ProjectName::as_str).collect();
        match names.as_slice() {
            [one] => format!("project {one}"),
            more => format!("the projects {}", more.join(", ")),
        }
    }

    fn denied(&self, needed: Role, project: Option<&ProjectName>, what: &str) -> Result<(), Error> {
        let role = name(needed);
        self.denials.inc();
        tracing::warn!(
            token = self.token.id, name = self.token.name, address = %self.from,
            project = project.map(tracing::field::display), needed = role, "denied"
        );
        let everywhere = if project.is_none() { " for all projects" } else { "" };
        let flag = project.map_or_else(String::new, |project| format!(" --project {project}"));
        Err(Error::new(
            Code::AuthDenied,
            format!("token `{}` {what}; this needs the role {role}{everywhere}", self.token.name),
        )
        .hint(format!("ask an administrator: coderingctl token create --role {role}{flag}")))
    }
}

fn rank(role: Role) -> u8 {
    match role {
        Role::Worker => 0,
        Role::Viewer => 1,
        Role::Submitter => 2,
        Role::Admin => 3,
    }
}

/// The role as it is written.
pub fn name(role: Role) -> &'static str {
    match role {
        Role::Worker => "worker",
        Role::Viewer => "viewer",
        Role::Submitter => "submitter",
        Role::Admin => "admin",
    }
}

fn shown(role: Role) -> String {
    let article = if role == Role::Admin { "an" } else { "a" };
    format!("{article} {}", name(role))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn caller(role: Role, projects: &[&str]) -> Caller {
        let token = Token {
            id: "0123456789ab".into(),
            name: "ci".into(),
            role,
            projects: projects.iter().map(|p| ProjectName::new(p).expect("a name")).collect(),
            hash: [0; 32],
            created_at: 1,
            expires_at: 0,
            revoked_at: 0,
            last_used_at: 0,
        };
        Caller::new(Arc::new(token), IpAddr::from([127, 0, 0, 1]), Counter::default())
    }

    #[test]
    fn each_role_may_what_the_lesser_ones_may_and_no_more() {
        let demo = ProjectName::new("demo").expect("a name");
        let roles = [Role::Worker, Role::Viewer, Role::Submitter, Role::Admin];
        for (place, held) in roles.iter().enumerate() {
            for (needed_place, needed) in roles.iter().enumerate().skip(1) {
                let allowed = place >= needed_place;
                assert_eq!(caller(*held, &[]).may(*needed, &demo).is_ok(), allowed, "{held:?} {needed:?}");
                assert_eq!(
                    caller(*held, &[]).may_everywhere(*needed).is_ok(),
                    allowed,
                    "{held:?} {needed:?}"
                );
            }
        }
    }

    #[test]
    fn a_token_of_some_projects_is_nothing_elsewhere() {
        let admin = caller(Role::Admin, &["demo", "pi"]);
        let (demo, other) =
            (ProjectName::new("demo").expect("a name"), ProjectName::new("other").expect("a name"));
        assert!(admin.may(Role::Admin, &demo).is_ok());
        assert!(!admin.sees(&other));
        let error = admin.may(Role::Viewer, &other).expect_err("denied");
        assert_eq!(
            error.message,
            "token `ci` is limited to the projects demo, pi; this needs the role viewer"
        );
        assert_eq!(admin.may_everywhere(Role::Viewer).expect_err("denied").code, Code::AuthDenied);
    }

    #[test]
    fn a_denial_says_who_what_is_needed_and_whom_to_ask() {
        let demo = ProjectName::new("demo").expect("a name");
        let error = caller(Role::Viewer, &["demo"]).may(Role::Submitter, &demo).expect_err("denied");
        assert_eq!(error.message, "token `ci` is a viewer of project demo; this needs the role submitter");
        assert_eq!(
            error.hint,
            "ask an administrator: coderingctl token create --role submitter --project demo"
        );
    }
}
