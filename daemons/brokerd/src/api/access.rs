//! Who may call what: one row for every gRPC method, and the same type in every row of REST's route table.
//! What has no row is refused.

use crate::ledger::Role;

/// How the project of a call is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// The call names it.
    Name,
    /// It is the named queue's.
    Queue,
    /// It is the named job's.
    Job,
}

/// What a caller must show.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Nothing.
    Open,
    /// Any live token; what it may do is decided by what is asked.
    AnyToken,
    /// A worker's certificate: signed by the CA, the newest of its name, not revoked.
    Certificate,
    /// A token of at least this role that is not limited to projects.
    Everywhere(Role),
    /// A token of at least this role in the call's project.
    In(Found, Role),
    /// A token of at least this role; the answer is limited to the projects that it may see.
    Listing(Role),
}

use Access::{AnyToken, Certificate, Everywhere, In, Listing, Open};
use Found::{Job, Name, Queue};
use Role::{Admin, Submitter, Viewer};

/// Every gRPC method.
pub const METHODS: &[(&str, Access)] = &[
    ("codering.v1.Projects/Create", Everywhere(Admin)),
    ("codering.v1.Projects/List", Listing(Viewer)),
    ("codering.v1.Projects/Get", In(Name, Viewer)),
    ("codering.v1.Projects/Delete", In(Name, Admin)),
    // A project's own administrator does not raise its bounds.
    ("codering.v1.Projects/SetQuota", Everywhere(Admin)),
    ("codering.v1.Queues/List", Listing(Viewer)),
    ("codering.v1.Queues/Create", In(Queue, Submitter)),
    ("codering.v1.Queues/Put", In(Queue, Submitter)),
    // Taking a message changes the queue.
    ("codering.v1.Queues/Get", In(Queue, Submitter)),
    ("codering.v1.Queues/Subscribe", In(Queue, Submitter)),
    ("codering.v1.Queues/Purge", In(Queue, Submitter)),
    ("codering.v1.Queues/Delete", In(Queue, Submitter)),
    ("codering.v1.Queues/ListDead", In(Name, Viewer)),
    ("codering.v1.Queues/RequeueDead", In(Name, Submitter)),
    ("codering.v1.Queues/Rebuild", In(Name, Admin)),
    ("codering.v1.Jobs/Submit", In(Name, Submitter)),
    ("codering.v1.Jobs/List", Listing(Viewer)),
    ("codering.v1.Jobs/Get", In(Job, Viewer)),
    ("codering.v1.Jobs/Watch", In(Job, Viewer)),
    ("codering.v1.Jobs/Cancel", In(Job, Submitter)),
    ("codering.v1.Jobs/Retry", In(Job, Submitter)),
    ("codering.v1.Jobs/Pause", In(Job, Submitter)),
    ("codering.v1.Jobs/Resume", In(Job, Submitter)),
    ("codering.v1.Jobs/Reduce", In(Job, Submitter)),
    ("codering.v1.Jobs/Results", In(Job, Viewer)),
    ("codering.v1.Jobs/Answer", In(Job, Viewer)),
    ("codering.v1.Jobs/BuildLogs", In(Job, Viewer)),
    ("codering.v1.Jobs/ListTasks", In(Job, Viewer)),
    ("codering.v1.Jobs/GetTask", In(Job, Viewer)),
    ("codering.v1.Jobs/CancelTask", In(Job, Submitter)),
    ("codering.v1.Jobs/RetryTask", In(Job, Submitter)),
    ("codering.v1.Jobs/Logs", In(Job, Viewer)),
    // A backup has every job, and the tokens' hashes.
    ("codering.v1.Ledger/Check", Everywhere(Admin)),
    ("codering.v1.Ledger/Backup", Everywhere(Admin)),
    // Nobody gives more than it has: `Auth` looks at the token that is asked for.
    ("codering.v1.Tokens/Create", AnyToken),
    ("codering.v1.Tokens/List", AnyToken),
    ("codering.v1.Tokens/Revoke", AnyToken),
    ("codering.v1.Tokens/WhoAmI", AnyToken),
    ("codering.v1.Workers/List", Everywhere(Viewer)),
    ("codering.v1.Workers/Get", Everywhere(Viewer)),
    ("codering.v1.Workers/Pause", Everywhere(Admin)),
    ("codering.v1.Workers/Resume", Everywhere(Admin)),
    ("codering.v1.Workers/Revoke", Everywhere(Admin)),
    // Its join token is in the message.
    ("codering.v1.Workers/Enroll", Open),
    ("codering.v1.Workers/Renew", Certificate),
    ("codering.v1.Workers/Attach", Certificate),
    ("codering.v1.Workers/Report", Certificate),
    ("codering.v1.Workers/PinCommit", Certificate),
    ("codering.v1.Workers/Input", Certificate),
    ("grpc.health.v1.Health/Check", Open),
    ("grpc.health.v1.Health/Watch", Open),
    ("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", AnyToken),
];

/// The row of a gRPC method by its path, `/codering.v1.Jobs/Submit`.
pub fn of_method(path: &str) -> Option<Access> {
    let name = path.strip_prefix('/')?;
    METHODS.iter().find(|(method, _)| *method == name).map(|(_, access)| *access)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use prost::Message;
    use prost_types::FileDescriptorSet;

    use super::*;

    fn methods_of(descriptors: &[u8]) -> BTreeSet<String> {
        let files = FileDescriptorSet::decode(descriptors).expect("a descriptor set").file;
        let mut names = BTreeSet::new();
        for file in files {
            for service in &file.service {
                let method = |m: &prost_types::MethodDescriptorProto| {
                    format!("{}.{}/{}", file.package(), service.name(), m.name())
                };
                names.extend(service.method.iter().map(method));
            }
        }
        names
    }

    #[test]
    fn every_method_that_is_served_has_one_row_and_no_row_is_without_a_method() {
        let mut served = methods_of(codering_proto::FILE_DESCRIPTOR_SET);
        served.extend(methods_of(tonic_health::pb::FILE_DESCRIPTOR_SET));
        served.extend(methods_of(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET));
        let rows: BTreeSet<_> = METHODS.iter().map(|(name, _)| (*name).to_owned()).collect();
        assert_eq!(rows, served);
        assert_eq!(rows.len(), METHODS.len(), "a row is there twice");
    }

    #[test]
    fn what_has_no_row_is_not_found() {
        assert_eq!(of_method("/codering.v1.Jobs/Submit"), Some(In(Name, Submitter)));
        for path in ["/codering.v1.Jobs/Nothing", "codering.v1.Jobs/Submit", "//codering.v1.Jobs/Submit", "/"]
        {
            assert_eq!(of_method(path), None, "{path}");
        }
    }

    #[test]
    fn nothing_but_probes_and_enrolment_is_open() {
        let open: Vec<_> = METHODS.iter().filter(|(_, access)| *access == Open).map(|(n, _)| *n).collect();
        assert!(open.iter().all(|n| n.starts_with("grpc.health.") || n.ends_with("/Enroll")), "{open:?}");
    }
}
