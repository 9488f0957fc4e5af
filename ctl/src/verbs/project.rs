//! `project`: tenants and their quotas.

use clap::{Args, Subcommand};
use codering_core::{Code, Error, ProjectName, units};
use codering_proto::v1::{
    self, CreateProjectRequest, DeleteProjectRequest, GetProjectRequest, Project, Quota,
};

use crate::{
    client::said,
    context::Context,
    verbs::{complete, words},
};

/// Create, list, show and delete projects, and set their quotas.
#[derive(Debug, Subcommand)]
pub enum Verb {
    /// Create a project with its queues NAME.todo and NAME.done.
    #[command(after_help = "Examples:\n  \
        coderingctl project create demo\n  \
        coderingctl project create demo --running-slots 8 --queued-tasks 100000")]
    Create {
        /// 1 to 40 of a-z, 0-9, `-` and `_`.
        name: ProjectName,
        #[command(flatten)]
        quota: QuotaArgs,
    },
    /// List the projects that your token may see.
    #[command(after_help = "Examples:\n  \
        coderingctl project list\n  \
        coderingctl project list --output json | jq -r '.[].name'")]
    List,
    /// Show what a project holds and may hold.
    #[command(after_help = "Examples:\n  \
        coderingctl project show demo\n  \
        coderingctl project show demo --output json | jq .queued_tasks")]
    Show {
        /// Which.
        #[arg(add = complete::projects())]
        name: ProjectName,
    },
    /// Delete a project with its queues, its finished jobs and their results.
    #[command(after_help = "Examples:\n  \
        coderingctl project delete demo\n  \
        coderingctl project delete demo --force --yes")]
    Delete {
        /// Which.
        #[arg(add = complete::projects())]
        name: ProjectName,
        /// Do not ask.
        #[arg(long, short)]
        yes: bool,
        /// Cancel its unfinished jobs first; without this they keep the project from being deleted.
        #[arg(long)]
        force: bool,
    },
    /// Show or set how much a project may hold at once.
    #[command(subcommand)]
    Quota(QuotaVerb),
}

/// Show or set a quota.
#[derive(Debug, Subcommand)]
pub enum QuotaVerb {
    /// Show each quota beside what is used of it.
    #[command(after_help = "Examples:\n  \
        coderingctl project quota show demo\n  \
        coderingctl project quota show demo --output json | jq .quota.running_slots")]
    Show {
        /// Which.
        #[arg(add = complete::projects())]
        name: ProjectName,
    },
    /// Set quotas; those that are not named stay as they are, and 0 takes one away.
    #[command(after_help = "Examples:\n  \
        coderingctl project quota set demo --running-slots 16\n  \
        coderingctl project quota set demo --queued-tasks 0 --result-bytes 10G")]
    Set {
        /// Which.
        #[arg(add = complete::projects())]
        name: ProjectName,
        #[command(flatten)]
        quota: QuotaArgs,
    },
}

/// Quotas; 0 is none.
#[derive(Debug, Args)]
pub struct QuotaArgs {
    /// Tasks recorded and not yet done.
    #[arg(long, value_name = "N")]
    queued_tasks: Option<u64>,
    /// Attempts that run at the same time.
    #[arg(long, value_name = "N")]
    running_slots: Option<u32>,
    /// Bytes of recorded results, e.g. 512M or 10G; at the bound, submits are refused.
    #[arg(long, value_name = "SIZE", value_parser = size)]
    result_bytes: Option<u64>,
}

fn size(text: &str) -> Result<u64, String> {
    units::size_bytes(text).ok_or_else(|| "expected a size such as 512M, 2G or a number of bytes".into())
}

impl QuotaArgs {
    fn over(&self, base: Quota) -> Quota {
        Quota {
            queued_tasks: self.queued_tasks.unwrap_or(base.queued_tasks),
            running_slots: self.running_slots.unwrap_or(base.running_slots),
            result_bytes: self.result_bytes.unwrap_or(base.result_bytes),
        }
    }

    fn is_empty(&self) -> bool {
        self.queued_tasks.is_none() && self.running_slots.is_none() && self.result_bytes.is_none()
    }
}

/// Runs the verb.
pub async fn run(ctx: &Context, verb: Verb) -> Result<(), Error> {
    match verb {
        Verb::Create { name, quota } => create(ctx, name, &quota).await,
        Verb::List => list(ctx).await,
        Verb::Show { name } => show(ctx, name).await,
        Verb::Delete { name, yes, force } => delete(ctx, name, yes, force).await,
        Verb::Quota(QuotaVerb::Show { name }) => quota_show(ctx, name).await,
        Verb::Quota(QuotaVerb::Set { name, quota }) => quota_set(ctx, name, &quota).await,
    }
}

async fn get(ctx: &Context, name: &ProjectName) -> Result<Project, Error> {
    let request = GetProjectRequest { name: name.to_string() };
    said(ctx.broker().await?.projects().get(request).await)
}

async fn create(ctx: &Context, name: ProjectName, quota: &QuotaArgs) -> Result<(), Error> {
    let quota = quota.over(Quota::default());
    let request = CreateProjectRequest { name: name.to_string(), quota: Some(quota) };
    let project = said(ctx.broker().await?.projects().create(request).await)?;
    ctx.out.one(&project, || vec![format!("created  {name} with the queues {name}.todo and {name}.done")])
}

async fn list(ctx: &Context) -> Result<(), Error> {
    let answer = said(ctx.broker().await?.projects().list(v1::ListProjectsRequest {}).await)?;
    let now = ctx.now();
    if answer.projects.is_empty() {
        ctx.out.note("there is no project yet: coderingctl project create NAME");
    }
    ctx.out.list(&answer.projects, &["PROJECT", "QUEUED", "RUNNING", "JOBS", "RESULTS", "AGE"], |project| {
        vec![
            project.name.clone(),
            project.queued_tasks.to_string(),
            project.running_tasks.to_string(),
            project.unfinished_jobs.to_string(),
            units::show_size(project.result_bytes),
            words::ago(project.created_at_ms, now),
        ]
    })
}

async fn show(ctx: &Context, name: ProjectName) -> Result<(), Error> {
    let project = get(ctx, &name).await?;
    ctx.out.one(&project, || {
        let quota = project.quota.unwrap_or_default();
        vec![
            format!("project   {name}, created {} ago", words::ago(project.created_at_ms, ctx.now())),
            format!("queues    {name}.todo, {name}.done, {name}.dead"),
            format!(
                "jobs      {} unfinished (coderingctl job list --project {name})",
                project.unfinished_jobs
            ),
            format!("queued    {}", of(project.queued_tasks, quota.queued_tasks, |n| n.to_string())),
            format!("running   {}", of(project.running_tasks, quota.running_slots.into(), |n| n.to_string())),
            format!("results   {}", of(project.result_bytes, quota.result_bytes, units::show_size)),
        ]
    })
}

async fn delete(ctx: &Context, name: ProjectName, yes: bool, force: bool) -> Result<(), Error> {
    let project = get(ctx, &name).await?;
    if project.unfinished_jobs > 0 && !force {
        return Err(Error::new(
            Code::ProjectBusy,
            format!("project {name} has {} unfinished jobs", project.unfinished_jobs),
        )
        .hint(format!("cancel them with it: coderingctl project delete {name} --force")));
    }
    let cancels = match project.unfinished_jobs {
        0 => String::new(),
        n => format!(" and cancel its {n} unfinished jobs"),
    };
    let loses = units::show_size(project.result_bytes);
    ctx.confirm(&format!("delete project {name} with its queues and {loses} of results{cancels}?"), yes)?;
    let request = DeleteProjectRequest { name: name.to_string(), force };
    said(ctx.broker().await?.projects().delete(request).await)?;
    ctx.out.note(format!("deleted  {name}"));
    Ok(())
}

async fn quota_show(ctx: &Context, name: ProjectName) -> Result<(), Error> {
    let project = get(ctx, &name).await?;
    ctx.out.one(&project, || quota_lines(&project))
}

async fn quota_set(ctx: &Context, name: ProjectName, wanted: &QuotaArgs) -> Result<(), Error> {
    if wanted.is_empty() {
        return Err(Error::new(Code::InvalidInput, "no quota was named")
            .hint("name at least one of --queued-tasks, --running-slots and --result-bytes"));
    }
    let quota = wanted.over(get(ctx, &name).await?.quota.unwrap_or_default());
    let request = v1::SetQuotaRequest { name: name.to_string(), quota: Some(quota) };
    let project = said(ctx.broker().await?.projects().set_quota(request).await)?;
    ctx.out.one(&project, || quota_lines(&project))
}

fn quota_lines(project: &Project) -> Vec<String> {
    let quota = project.quota.unwrap_or_default();
    let plain = |n: u64| n.to_string();
    vec![
        format!("queued tasks   {}", of(project.queued_tasks, quota.queued_tasks, plain)),
        format!("running slots  {}", of(project.running_tasks, quota.running_slots.into(), plain)),
        format!("result bytes   {}", of(project.result_bytes, quota.result_bytes, units::show_size)),
    ]
}

/// `3 of 16`, or `3, no quota`.
fn of(used: u64, quota: u64, show: impl Fn(u64) -> String) -> String {
    match quota {
        0 => format!("{}, no quota", show(used)),
        _ => format!("{} of {}", show(used), show(quota)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quota_that_is_not_named_stays_and_zero_takes_it_away() {
        let base = Quota { queued_tasks: 5, running_slots: 6, result_bytes: 7 };
        let wanted = QuotaArgs { queued_tasks: Some(0), running_slots: None, result_bytes: Some(9) };
        assert_eq!(wanted.over(base), Quota { queued_tasks: 0, running_slots: 6, result_bytes: 9 });
        assert_eq!(of(3, 0, |n| n.to_string()), "3, no quota");
        assert_eq!(of(3, 16, |n| n.to_string()), "3 of 16");
    }
}
