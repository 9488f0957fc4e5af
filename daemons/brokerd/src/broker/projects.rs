//! Projects, their quotas, and what they hold: kept in memory in step with every committed change.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use codering_core::{
    Code, Error, ProjectName, QueueName,
    job::{Tally, TaskCounts},
    quota::Quota,
    task::State,
};
use codering_kit::fault::{self, Point};

use super::{Broker, now};
use crate::ledger::{JobFilter, Project, Usage};

/// A project with what it holds.
#[derive(Debug, Clone)]
pub struct ProjectView {
    /// The row.
    pub project: Project,
    /// What it holds now.
    pub usage: Usage,
}

/// The projects in memory.
#[derive(Debug, Default)]
pub(super) struct Projects(Mutex<BTreeMap<ProjectName, Entry>>);

#[derive(Debug)]
struct Entry {
    view: ProjectView,
    /// Where the view's counters of tasks come from.
    tally: Tally,
    /// Tasks that were let in and are not recorded yet.
    reserved: u64,
}

/// Room for tasks that were let in, until it is dropped: once they are counted, or will not be.
#[derive(Debug)]
pub(super) struct Reserved<'a> {
    projects: &'a Projects,
    project: &'a ProjectName,
    /// Changed with the projects locked.
    left: AtomicU64,
}

impl Reserved<'_> {
    /// So many of them are counted by now.
    pub(super) fn counted(&self, tasks: u64) {
        let mut projects = self.projects.lock();
        let left = self.left.load(Ordering::Relaxed);
        let tasks = tasks.min(left);
        self.left.store(left - tasks, Ordering::Relaxed);
        if let Some(entry) = projects.get_mut(self.project) {
            entry.reserved = entry.reserved.saturating_sub(tasks);
        }
    }
}

impl Drop for Reserved<'_> {
    fn drop(&mut self) {
        self.counted(u64::MAX);
    }
}

impl Entry {
    /// Tasks that count against its quota.
    fn held(&self) -> u64 {
        let usage = &self.view.usage;
        usage.queued_tasks + usage.running_tasks + self.reserved
    }

    fn tell(&mut self) {
        let counts = self.tally.counts();
        (self.view.usage.queued_tasks, self.view.usage.running_tasks) = (counts.queued, counts.running);
    }
}

impl Projects {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ProjectName, Entry>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn get(&self, name: &ProjectName) -> Option<ProjectView> {
        self.lock().get(name).map(|entry| entry.view.clone())
    }

    pub(super) fn put(&self, view: ProjectView) {
        let (queued, running) = (view.usage.queued_tasks, view.usage.running_tasks);
        let tally = TaskCounts { queued, running, ..TaskCounts::default() }.into();
        self.lock().insert(view.project.name.clone(), Entry { view, tally, reserved: 0 });
    }

    fn remove(&self, name: &ProjectName) {
        self.lock().remove(name);
    }

    pub(super) fn names(&self) -> Vec<ProjectName> {
        self.lock().keys().cloned().collect()
    }

    /// A task moved.
    pub(super) fn moved(&self, name: &ProjectName, from: &State, to: &State) {
        let mut projects = self.lock();
        let Some(entry) = projects.get_mut(name) else { return };
        entry.tally.moved(from, to);
        entry.tell();
    }

    pub(super) fn queued(&self, name: &ProjectName, n: u64) {
        let mut projects = self.lock();
        let Some(entry) = projects.get_mut(name) else { return };
        entry.tally.add(&State::Ready { published: false, not_before: 0 }, n);
        entry.tell();
    }

    pub(super) fn stored(&self, name: &ProjectName, bytes: u64) {
        if let Some(entry) = self.lock().get_mut(name) {
            entry.view.usage.result_bytes += bytes;
        }
    }

    /// Results of it are kept no longer.
    pub(super) fn forgot(&self, name: &ProjectName, bytes: u64) {
        if let Some(entry) = self.lock().get_mut(name) {
            let kept = &mut entry.view.usage.result_bytes;
            *kept = kept.saturating_sub(bytes);
        }
    }

    /// How many tasks more it may have before it is at a quota; where there is none, as many as there can be.
    pub(super) fn room(&self, name: &ProjectName) -> u32 {
        let projects = self.lock();
        let Some(entry) = projects.get(name) else { return u32::MAX };
        let (quota, usage) = (entry.view.project.quota, entry.view.usage);
        if quota.result_bytes > 0 && usage.result_bytes >= quota.result_bytes {
            return 0;
        }
        if quota.queued_tasks == 0 {
            return u32::MAX;
        }
        u32::try_from(quota.queued_tasks.saturating_sub(entry.held())).unwrap_or(u32::MAX)
    }

    /// Refuses what would pass a quota. What is let in has its room until the answer is dropped, so that of many at once
    /// no more are let in than there is room for.
    pub(super) fn admit<'a>(&'a self, name: &'a ProjectName, tasks: u64) -> Result<Reserved<'a>, Error> {
        let mut projects = self.lock();
        let entry = projects.get_mut(name).ok_or_else(|| not_found(name))?;
        let (quota, usage, held) = (entry.view.project.quota, entry.view.usage, entry.held());
        let refuse = |what: String, wait: &str, option: &str| {
            let raise = format!("coderingctl project quota set {name} {option}");
            Err(Error::new(Code::QuotaExceeded, what).hint(format!("{wait}, or raise it: {raise}")))
        };
        if quota.queued_tasks > 0 && held + tasks > quota.queued_tasks {
            return refuse(
                format!(
                    "project {name} may have {} unfinished tasks; it has {held} and {tasks} more were submitted",
                    quota.queued_tasks
                ),
                "wait until some are done",
                "--queued-tasks N",
            );
        }
        if quota.result_bytes > 0 && usage.result_bytes >= quota.result_bytes {
            return refuse(
                format!(
                    "project {name} may keep {} bytes of results and keeps {}",
                    quota.result_bytes, usage.result_bytes
                ),
                "wait until retention lets old jobs go",
                "--result-bytes SIZE",
            );
        }
        entry.reserved += tasks;
        Ok(Reserved { projects: self, project: name, left: tasks.into() })
    }
}

fn not_found(name: &ProjectName) -> Error {
    Error::new(Code::ProjectNotFound, format!("there is no project {name}"))
        .hint(format!("coderingctl project create {name}"))
}

fn own_queues(name: &ProjectName) -> [QueueName; 3] {
    [QueueName::todo(name), QueueName::done(name), QueueName::dead(name)]
}

impl Broker {
    /// Makes a project with its queues.
    pub async fn create_project(&self, name: ProjectName, quota: Quota) -> Result<ProjectView, Error> {
        let _alone = self.tenants.lock().await;
        if self.projects.get(&name).is_some() {
            return Err(Error::new(Code::ProjectExists, format!("there is a project {name} already")));
        }
        let project = Project { name: name.clone(), quota, created_at: now() };
        self.ledger.put_project(project.clone()).await?;
        fault::reached(Point::ProjectRecorded);
        let view = ProjectView { project, usage: Usage::default() };
        self.projects.put(view.clone());
        self.scheduler().set_quota(&name, quota.running_slots);
        self.ensure_queues(&name).await?;
        self.listen();
        Ok(view)
    }

    /// The project's own three queues: recorded, and made where the backend is in reach; where it is away,
    /// the reconciler makes them.
    async fn ensure_queues(&self, name: &ProjectName) -> Result<(), Error> {
        self.record_queues(name).await?;
        for queue in own_queues(name) {
            if let Err(error) = self.queues.create(&queue).await {
                tracing::warn!(queue = %queue, %error, "the queue will be made when the backend is back");
            }
            fault::reached(Point::ProjectQueueMade);
        }
        Ok(())
    }

    /// What a crash may have left of a new project: a row without queues.
    pub(super) async fn record_queues(&self, name: &ProjectName) -> Result<(), Error> {
        for queue in own_queues(name) {
            self.ledger.put_queue(&queue).await?;
            fault::reached(Point::ProjectQueueRecorded);
        }
        Ok(())
    }

    /// Hears of messages that others put on the todo queues.
    pub(super) fn listen(&self) {
        self.queues.listen_to(self.projects.names().iter().map(QueueName::todo).collect());
    }

    /// Projects by name; `only` limits them to those that a token may see.
    pub async fn projects(&self, only: Option<&[ProjectName]>) -> Result<Vec<ProjectView>, Error> {
        let seen = |name: &ProjectName| only.is_none_or(|only| only.contains(name));
        let names = self.projects.names();
        let views = names.iter().filter(|name| seen(name)).filter_map(|name| self.projects.get(name));
        Ok(views.map(|view| self.with_jobs(view)).collect())
    }

    /// One project.
    pub async fn project(&self, name: &ProjectName) -> Result<ProjectView, Error> {
        self.projects.get(name).map(|view| self.with_jobs(view)).ok_or_else(|| not_found(name))
    }

    fn with_jobs(&self, mut view: ProjectView) -> ProjectView {
        let of_it = |job: &std::sync::Arc<super::live::LiveJob>| {
            job.with(|j| j.spec.project == view.project.name && !super::live::is_over(j))
        };
        view.usage.unfinished_jobs = self.jobs.all().iter().filter(|job| of_it(job)).count() as u64;
        view
    }

    /// Removes a project with its jobs and queues.
    pub async fn delete_project(&self, name: &ProjectName, force: bool) -> Result<(), Error> {
        let _alone = self.tenants.lock().await;
        let mut view = self.project(name).await?;
        if view.usage.unfinished_jobs > 0 && !force {
            return Err(Error::new(
                Code::ProjectBusy,
                format!("project {name} has {} unfinished jobs", view.usage.unfinished_jobs),
            )
            .hint("wait for them, or delete it with --force, which cancels them"));
        }
        let quota = view.project.quota;
        self.projects.remove(name);
        self.scheduler().forget(name);
        self.listen();
        let removed = self.remove_all_of(name).await;
        if removed.is_err() {
            // What is left of it can be seen, and removed by another try.
            view.usage = self.ledger.usage(name).await.unwrap_or(view.usage);
            self.projects.put(view);
            self.scheduler().set_quota(name, quota.running_slots);
            self.listen();
        }
        removed
    }

    async fn remove_all_of(&self, name: &ProjectName) -> Result<(), Error> {
        let filter = JobFilter { projects: Some(vec![name.clone()]), state: None };
        loop {
            let jobs = self.ledger.jobs(filter.clone(), None, 100).await?;
            if jobs.is_empty() {
                break;
            }
            for job in jobs {
                self.leases
                    .of_job(&job.id)
                    .iter()
                    .for_each(|(token, worker)| self.fleet.cancel(worker, token));
                self.remove_job(&job.id, name, true).await?;
                fault::reached(Point::ProjectJobRemoved);
            }
        }
        for queue in self.ledger.queues().await?.into_iter().filter(|q| q.project() == *name) {
            self.queues.delete(&queue).await?;
            fault::reached(Point::ProjectQueueRemoved);
            self.ledger.delete_queue(&queue).await?;
            fault::reached(Point::ProjectQueueForgotten);
        }
        self.ledger.delete_project(name).await?;
        fault::reached(Point::ProjectRemoved);
        Ok(())
    }

    /// Sets what a project may hold.
    pub async fn set_quota(&self, name: &ProjectName, quota: Quota) -> Result<ProjectView, Error> {
        let _alone = self.tenants.lock().await;
        let mut view = self.project(name).await?;
        view.project.quota = quota;
        self.ledger.put_project(view.project.clone()).await?;
        fault::reached(Point::ProjectChanged);
        if let Some(live) = self.projects.lock().get_mut(name) {
            live.view.project.quota = quota;
        }
        self.scheduler().set_quota(name, quota.running_slots);
        self.scheduler().ring(name);
        self.dispatch.notify_one();
        Ok(view)
    }
}
