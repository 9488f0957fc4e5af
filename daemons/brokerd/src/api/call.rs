//! One call that was let in. The broker is reached through it alone, by the way that the call's row in the table
//! names: a handler that asks for another one, or for none, gets nothing.

use std::time::Duration;

use codering_core::{Code, Error, ProjectName, QueueName, TaskKey, WorkerName, quota::Quota};
use codering_kit::listen::Peer;
use futures::{Stream, StreamExt, stream};

use super::{
    Api,
    access::{Access, Found},
    rooms::Rooms,
};
use crate::{
    auth::{Auth, Caller},
    broker::{Broker, ProjectView},
    ledger::{Job, Role},
};

/// A stream's caller is asked for again after this long, so that a revoked token ends its streams too.
const ASK_AGAIN: Duration = Duration::from_secs(3);

/// Who calls.
#[derive(Clone)]
pub enum Who {
    /// Nobody had to prove anything.
    Anyone,
    /// The holder of a token.
    Caller(Caller),
    /// The worker of a certificate.
    Worker(WorkerName),
}

/// See the module; an extension of the request.
#[derive(Clone)]
pub struct Call {
    api: Api,
    access: Access,
    who: Who,
    peer: Peer,
}

impl Call {
    pub(super) fn new(api: Api, access: Access, who: Who, peer: Peer) -> Self {
        Self { api, access, who, peer }
    }

    /// Who calls, by its token.
    pub fn caller(&self) -> Result<&Caller, Error> {
        match &self.who {
            Who::Caller(caller) => Ok(caller),
            _ => Err(self.refused()),
        }
    }

    /// Where it comes from.
    pub fn peer(&self) -> &Peer {
        &self.peer
    }

    /// One line for a log: never the secret.
    pub fn shown(&self) -> String {
        match &self.who {
            Who::Anyone => "-".into(),
            Who::Caller(caller) => caller.token().id.clone(),
            Who::Worker(name) => name.to_string(),
        }
    }

    /// The bounds.
    pub fn rooms(&self) -> &Rooms {
        &self.api.0.rooms
    }

    /// For what concerns no one project.
    pub fn everywhere(&self) -> Result<&Broker, Error> {
        match self.access {
            Access::Everywhere(role) => {
                self.caller()?.may_everywhere(role)?;
                Ok(&self.api.0.broker)
            }
            _ => Err(self.refused()),
        }
    }

    /// Makes a project. Tokens of an earlier one of this name are nothing in it.
    pub async fn create_project(&self, name: ProjectName, quota: Quota) -> Result<ProjectView, Error> {
        let broker = self.everywhere()?;
        self.api.0.auth.forget_project(&name).await?;
        let made = broker.create_project(name, quota).await?;
        self.decided("a project was created", made.project.name.as_str());
        Ok(made)
    }

    /// Deletes a project; what tokens could do there ends with it.
    pub async fn delete_project(&self, name: &ProjectName, force: bool) -> Result<(), Error> {
        self.project(name)?.delete_project(name, force).await?;
        self.decided("a project was deleted", name.as_str());
        self.api.0.auth.forget_project(name).await
    }

    /// Logs who decided what.
    pub fn decided(&self, what: &'static str, of: &str) {
        if let Who::Caller(caller) = &self.who {
            let (token, name, address) = (&caller.token().id, caller.name(), caller.address());
            tracing::info!(of, by = token, by_name = name, %address, "{what}");
        }
    }

    /// For what names its project.
    pub fn project(&self, name: &ProjectName) -> Result<&Broker, Error> {
        self.found(Found::Name, name)
    }

    /// For what names a queue.
    pub fn queue(&self, name: &QueueName) -> Result<&Broker, Error> {
        self.found(Found::Queue, &name.project())
    }

    /// For what makes a queue: where that makes its project too, an administrator of all projects must call.
    pub async fn new_queue(&self, name: &QueueName) -> Result<&Broker, Error> {
        let broker = self.queue(name)?;
        match broker.project(&name.project()).await {
            Err(error) if error.code == Code::ProjectNotFound => {
                self.caller()?.may_everywhere(Role::Admin)?;
                self.api.0.auth.forget_project(&name.project()).await?;
            }
            Err(error) => return Err(error),
            Ok(_) => {}
        }
        Ok(broker)
    }

    /// For what names a job by its id or the start of it, among those that the caller may see.
    pub async fn job(&self, prefix: &str) -> Result<(&Broker, Job), Error> {
        let only = self.caller()?.projects();
        let job = self.api.0.broker.find_job(prefix, only).await?;
        Ok((self.found(Found::Job, &job.spec.project)?, job))
    }

    /// For what names a task of a job.
    pub async fn task(&self, job: &str, task: &str) -> Result<(&Broker, Job, TaskKey), Error> {
        let (broker, job) = self.job(job).await?;
        let task = task.parse().map_err(|_| {
            let typed = codering_core::ids::shown(task);
            Error::new(Code::TaskNotFound, format!("job {} has no task {typed}", job.id))
                .hint(format!("coderingctl task list {}", job.id))
        })?;
        let key = TaskKey { job: job.id.clone(), task };
        Ok((broker, job, key))
    }

    /// For lists: the projects that they are limited to, `None` for all. `named` limits to one.
    pub fn listing(&self, named: &str) -> Result<(&Broker, Option<Vec<ProjectName>>), Error> {
        let Access::Listing(role) = self.access else { return Err(self.refused()) };
        let caller = self.caller()?;
        let only = if named.is_empty() {
            caller.projects().map(<[_]>::to_vec)
        } else {
            let name = codering_proto::convert::id::<ProjectName>(named, "project")?;
            caller.may(role, &name)?;
            Some(vec![name])
        };
        Ok((&self.api.0.broker, only))
    }

    /// For tokens: what a caller may do with them is decided there.
    pub fn tokens(&self) -> Result<(&Auth, &Caller), Error> {
        match self.access {
            Access::AnyToken => Ok((&self.api.0.auth, self.caller()?)),
            _ => Err(self.refused()),
        }
    }

    /// For a join token's bearer, who has nothing else yet.
    pub fn enrolment(&self) -> Result<(&Auth, &Broker), Error> {
        match self.access {
            Access::Open => Ok((&self.api.0.auth, &self.api.0.broker)),
            _ => Err(self.refused()),
        }
    }

    /// For a worker that renews its certificate.
    pub fn renewal(&self) -> Result<(&Auth, &Broker), Error> {
        self.worker()?;
        Ok((&self.api.0.auth, &self.api.0.broker))
    }

    /// For workers.
    pub fn worker(&self) -> Result<(&Broker, &WorkerName), Error> {
        match (self.access, &self.who) {
            (Access::Certificate, Who::Worker(name)) => Ok((&self.api.0.broker, name)),
            _ => Err(self.refused()),
        }
    }

    /// The stream, until the token is no longer good or the drain begins.
    pub fn while_allowed<T: Send + 'static>(
        self,
        stream: impl Stream<Item = Result<T, Error>> + Send + 'static,
    ) -> impl Stream<Item = Result<T, Error>> + Send + 'static {
        let stream = stream.map(Some).chain(stream::once(async { None }));
        let ended = stream::once(self.ended())
            .flat_map(|why| stream::iter(why.map(|error| Some(Err(error))).into_iter().chain([None])));
        // The end of the one is the end of both, so that a finished stream does not wait for a revocation.
        stream::select(stream, ended).scan((), |(), item| std::future::ready(item))
    }

    /// Resolves when the call has to end: with the reason, or `None` in a drain.
    async fn ended(self) -> Option<Error> {
        loop {
            tokio::select! {
                () = tokio::time::sleep(ASK_AGAIN) => {}
                () = self.api.0.shutdown.begun() => return None,
            }
            // Where the ledger cannot say, the stream goes on.
            if let Who::Caller(caller) = &self.who
                && matches!(self.api.0.auth.is_live(caller).await, Ok(false))
            {
                return Some(Error::new(Code::AuthInvalid, "the token was revoked or has expired"));
            }
        }
    }

    fn found(&self, by: Found, project: &ProjectName) -> Result<&Broker, Error> {
        match self.access {
            Access::In(found, role) if found == by => {
                self.caller()?.may(role, project)?;
                Ok(&self.api.0.broker)
            }
            _ => Err(self.refused()),
        }
    }

    /// A handler went another way than its row says: denied, and a defect.
    fn refused(&self) -> Error {
        tracing::error!(access = ?self.access, "a handler asked for what its row in the table does not give");
        Error::new(Code::AuthDenied, "this call is not allowed")
    }
}
