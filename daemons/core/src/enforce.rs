//! What the Docker of a worker has to be able to enforce, read off its own account of itself (`GET /info`).

use serde_json::Value;

/// Docker's name for an ability, and what cannot be bounded without it. A limit that the host cannot hold is let go by
/// Docker with no more than a warning.
const LIMITS: [(&str, &str); 3] =
    [("MemoryLimit", "memory"), ("PidsLimit", "processes"), ("CpuCfsQuota", "processor time")];

/// What it cannot bound or filter; empty where tasks can be run.
pub fn lacking(info: &Value) -> Vec<&'static str> {
    let mut lacking: Vec<_> =
        LIMITS.iter().filter(|(name, _)| info[name] != true).map(|(_, what)| *what).collect();
    let options = info["SecurityOptions"].as_array();
    let named = |option: &Value| option.as_str().is_some_and(|o| o.split(',').any(|o| o == "name=seccomp"));
    if !options.is_some_and(|options| options.iter().any(named)) {
        lacking.push("system calls (seccomp)");
    }
    lacking
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn invariant_10_what_docker_does_not_say_that_it_can_enforce_is_lacking() {
        let able = json!({ "MemoryLimit": true, "PidsLimit": true, "CpuCfsQuota": true,
            "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"] });
        assert!(lacking(&able).is_empty());
        assert_eq!(lacking(&json!({})).len(), 4);
        for (name, what) in LIMITS {
            let mut unable = able.clone();
            unable[name] = false.into();
            assert_eq!(lacking(&unable), [what]);
        }
        let mut bare = able.clone();
        bare["SecurityOptions"] = json!(["name=apparmor"]);
        assert_eq!(lacking(&bare), ["system calls (seccomp)"]);
    }
}
