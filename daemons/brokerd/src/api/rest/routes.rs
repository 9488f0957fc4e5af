//! Every route: who may call it, what it takes and answers, and what it does. The router and the OpenAPI document are
//! both made from this table, so that neither knows a route that the other does not.

use axum::routing::{MethodFilter, MethodRouter, on};

use super::{jobs, openapi, projects, queues, rabbit, streams, tasks, tokens, workers};
use crate::{
    api::access::{
        Access::{self, AnyToken, Everywhere, In, Listing, Open},
        Found::{Job, Name, Queue},
    },
    ledger::Role::{Admin, Submitter, Viewer},
};

/// HTTP's method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// GET.
    Get,
    /// POST.
    Post,
    /// PUT.
    Put,
    /// DELETE.
    Delete,
}

use Verb::{Delete, Get, Post, Put};

impl Verb {
    /// For axum.
    pub fn filter(self) -> MethodFilter {
        match self {
            Get => MethodFilter::GET,
            Post => MethodFilter::POST,
            Put => MethodFilter::PUT,
            Delete => MethodFilter::DELETE,
        }
    }

    /// For OpenAPI.
    pub fn key(self) -> &'static str {
        match self {
            Get => "get",
            Post => "post",
            Put => "put",
            Delete => "delete",
        }
    }
}

/// What an answer holds.
#[derive(Debug, Clone, Copy)]
pub enum Shape {
    /// Nothing.
    Empty,
    /// JSON of this schema.
    Json(&'static str),
    /// JSON of this schema, or one of the other a line.
    JsonOrLines(&'static str, &'static str),
    /// Server-sent events whose data has this schema.
    Events(&'static str),
    /// Bytes.
    Bytes,
}

use Shape::{Bytes, Empty, Events, Json, JsonOrLines};

/// A parameter in the query or the header: name, type, meaning.
pub type Param = (&'static str, &'static str, &'static str);

/// One route.
pub struct Route {
    /// Its method.
    pub verb: Verb,
    /// Its path, without the trailing slash that may follow.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// What it is for, in one sentence.
    pub says: &'static str,
    /// What its query may hold.
    pub query: &'static [Param],
    /// The schema of its body.
    pub body: Option<&'static str>,
    /// Statuses and shapes of its good answers.
    pub answers: &'static [(u16, Shape)],
    /// What it does.
    pub handler: fn(MethodFilter) -> MethodRouter,
}

impl Route {
    const fn new(
        verb: Verb,
        path: &'static str,
        access: Access,
        says: &'static str,
        answers: &'static [(u16, Shape)],
        handler: fn(MethodFilter) -> MethodRouter,
    ) -> Self {
        Self { verb, path, access, says, query: &[], body: None, answers, handler }
    }

    const fn query(mut self, query: &'static [Param]) -> Self {
        self.query = query;
        self
    }

    const fn body(mut self, schema: &'static str) -> Self {
        self.body = Some(schema);
        self
    }
}

const PAGE_SIZE: Param =
    ("page_size", "integer", "At most so many; 100 where nothing is said, never more than 1000.");
const PAGE_TOKEN: Param = ("page_token", "string", "`next_page_token` of the page before.");
const OUTCOME: Param = ("outcome", "string", "Only these outcomes, with commas between them.");
const OF_PROJECT: Param = ("project", "string", "Only of this project.");

/// See the module.
pub static ROUTES: &[Route] = &[
    Route::new(Post, "/rabbit", In(Queue, Submitter),
        "Creates a queue; 200 where it is there. `P.todo` makes the project P, which only an administrator may.",
        &[(201, Json("QueueCreated")), (200, Json("QueueCreated"))], |m| on(m, rabbit::create))
        .body("CreateQueue"),
    Route::new(Post, "/rabbit/{queue}", In(Queue, Submitter),
        "Puts one message; answered once the queue has confirmed it.",
        &[(201, Json("MessagePut"))], |m| on(m, rabbit::put))
        .body("Message"),
    Route::new(Get, "/rabbit/{queue}", In(Queue, Submitter),
        "Takes one message; 204 where there is none.",
        &[(200, Json("Message")), (204, Empty)], |m| on(m, rabbit::take)),

    Route::new(Get, "/api/v1/openapi.json", Open, "This document.",
        &[(200, Json("Anything"))], |m| on(m, openapi::serve)),

    Route::new(Get, "/api/v1/projects", Listing(Viewer), "Projects by name.",
        &[(200, Json("ListProjectsResponse"))], |m| on(m, projects::list)),
    Route::new(Post, "/api/v1/projects", Everywhere(Admin), "Creates a project with its queues.",
        &[(201, Json("Project"))], |m| on(m, projects::create))
        .body("CreateProject"),
    Route::new(Get, "/api/v1/projects/{project}", In(Name, Viewer), "A project.",
        &[(200, Json("Project"))], |m| on(m, projects::get)),
    Route::new(Delete, "/api/v1/projects/{project}", In(Name, Admin),
        "Deletes a project with its jobs and queues.",
        &[(204, Empty)], |m| on(m, projects::delete))
        .query(&[("force", "boolean", "Cancels unfinished jobs instead of refusing.")]),
    Route::new(Put, "/api/v1/projects/{project}/quota", Everywhere(Admin), "Sets what a project may hold.",
        &[(200, Json("Project"))], |m| on(m, projects::set_quota))
        .body("SetQuota"),
    Route::new(Get, "/api/v1/projects/{project}/dead", In(Name, Viewer),
        "Messages that could not be used, without taking them.",
        &[(200, Json("ListDeadResponse"))], |m| on(m, projects::dead))
        .query(&[("limit", "integer", "At most so many; 100 where nothing is said, never more than 1000.")]),
    Route::new(Post, "/api/v1/projects/{project}/dead/requeue", In(Name, Submitter),
        "Puts dead letters back on the queues that they were on.",
        &[(200, Json("RequeueDeadResponse"))], |m| on(m, projects::requeue))
        .body("RequeueDead"),

    Route::new(Get, "/api/v1/queues", Listing(Viewer), "Queues, and how full they are.",
        &[(200, Json("ListQueuesResponse"))], |m| on(m, queues::list))
        .query(&[OF_PROJECT]),
    Route::new(Delete, "/api/v1/queues/{queue}", In(Queue, Submitter), "Deletes a queue with what is in it.",
        &[(204, Empty)], |m| on(m, queues::delete)),
    Route::new(Post, "/api/v1/queues/{queue}/purge", In(Queue, Submitter), "Removes what waits in a queue.",
        &[(200, Json("PurgeQueueResponse"))], |m| on(m, queues::purge)),

    Route::new(Get, "/api/v1/jobs", Listing(Viewer), "Jobs, newest first.",
        &[(200, Json("ListJobsResponse"))], |m| on(m, jobs::list))
        .query(&[OF_PROJECT, ("state", "string", "Only in this state."), PAGE_SIZE, PAGE_TOKEN]),
    Route::new(Post, "/api/v1/jobs", In(Name, Submitter),
        "Submits a job: all of it is checked, all of it is recorded, and only then is it answered. With a header \
         `idempotency-key` that was used before in the project: 200 with the first job.",
        &[(201, Json("Job")), (200, Json("Job"))], |m| on(m, jobs::submit))
        .body("JobFile"),
    Route::new(Get, "/api/v1/jobs/{job}", In(Job, Viewer),
        "A job, by its id or any unambiguous start of it, here and below.",
        &[(200, Json("Job"))], |m| on(m, jobs::get)),
    Route::new(Get, "/api/v1/jobs/{job}/results", In(Job, Viewer),
        "Recorded results in the order of the tasks: pages, or all as JSONL (`accept: application/jsonl`).",
        &[(200, JsonOrLines("ResultsPage", "Result"))], |m| on(m, streams::results))
        .query(&[("format", "string", "`jsonl` or `json`, over the header."), OUTCOME, PAGE_SIZE, PAGE_TOKEN]),
    Route::new(Get, "/api/v1/jobs/{job}/events", In(Job, Viewer),
        "The job whenever it changed, at most 10 times a second; the last one has a final state.",
        &[(200, Events("JobEvent"))], |m| on(m, streams::events)),
    Route::new(Get, "/api/v1/jobs/{job}/answer", In(Job, Viewer), "What the reduce step wrote.",
        &[(200, Bytes)], |m| on(m, streams::answer)),
    Route::new(Get, "/api/v1/jobs/{job}/builds", In(Job, Viewer), "The job's image builds with their logs.",
        &[(200, Json("BuildLogsResponse"))], |m| on(m, jobs::builds)),
    Route::new(Post, "/api/v1/jobs/{job}/cancel", In(Job, Submitter),
        "Nothing of it is leased from now on; what runs is stopped.",
        &[(200, Json("Job"))], |m| on(m, jobs::cancel)),
    Route::new(Post, "/api/v1/jobs/{job}/retry", In(Job, Submitter),
        "Tasks that failed or were cancelled become ready again.",
        &[(200, Json("RetryJobResponse"))], |m| on(m, jobs::retry)),
    Route::new(Post, "/api/v1/jobs/{job}/pause", In(Job, Submitter), "What runs goes on, nothing new is leased.",
        &[(200, Json("Job"))], |m| on(m, jobs::pause)),
    Route::new(Post, "/api/v1/jobs/{job}/resume", In(Job, Submitter), "It goes on.",
        &[(200, Json("Job"))], |m| on(m, jobs::resume)),
    Route::new(Post, "/api/v1/jobs/{job}/reduce", In(Job, Submitter),
        "Runs the reduce step over the recorded results, again or with another command; the body may be left out.",
        &[(200, Json("Job"))], |m| on(m, jobs::reduce))
        .body("ReduceFile"),

    Route::new(Get, "/api/v1/jobs/{job}/tasks", In(Job, Viewer), "Tasks in their order.",
        &[(200, Json("ListTasksResponse"))], |m| on(m, tasks::list))
        .query(&[("state", "string", "`queued`, `running` or `done`."), OUTCOME, PAGE_SIZE, PAGE_TOKEN]),
    Route::new(Get, "/api/v1/jobs/{job}/tasks/{task}", In(Job, Viewer),
        "A task with its attempts and, once it is done, its result.",
        &[(200, Json("Task"))], |m| on(m, tasks::get)),
    Route::new(Get, "/api/v1/jobs/{job}/tasks/{task}/logs", In(Job, Viewer),
        "A task's output from a byte offset; reading again from where the last answer ended loses and doubles nothing.",
        &[(200, Bytes)], |m| on(m, streams::logs))
        .query(&[
            ("stream", "string", "`stdout`, or `stderr`."),
            ("offset", "integer", "The first byte wanted."),
            ("follow", "boolean", "Waits for more until the task is done."),
        ]),
    Route::new(Post, "/api/v1/jobs/{job}/tasks/{task}/cancel", In(Job, Submitter), "Cancels a task.",
        &[(200, Json("Task"))], |m| on(m, tasks::cancel)),
    Route::new(Post, "/api/v1/jobs/{job}/tasks/{task}/retry", In(Job, Submitter), "Runs a done task again.",
        &[(200, Json("Task"))], |m| on(m, tasks::retry)),

    Route::new(Get, "/api/v1/workers", Everywhere(Viewer), "Workers and what runs there.",
        &[(200, Json("ListWorkersResponse"))], |m| on(m, workers::list)),
    Route::new(Get, "/api/v1/workers/{worker}", Everywhere(Viewer), "A worker.",
        &[(200, Json("Worker"))], |m| on(m, workers::get)),
    Route::new(Post, "/api/v1/workers/{worker}/pause", Everywhere(Admin),
        "It finishes what it runs and takes nothing new, until it is resumed.",
        &[(200, Json("Worker"))], |m| on(m, workers::pause)),
    Route::new(Post, "/api/v1/workers/{worker}/resume", Everywhere(Admin), "It takes tasks again.",
        &[(200, Json("Worker"))], |m| on(m, workers::resume)),
    Route::new(Post, "/api/v1/workers/{worker}/revoke", Everywhere(Admin),
        "Its certificate is refused from now on.",
        &[(200, Json("Worker"))], |m| on(m, workers::revoke)),

    Route::new(Get, "/api/v1/tokens", AnyToken, "Tokens, without their secrets.",
        &[(200, Json("ListTokensResponse"))], |m| on(m, tokens::list)),
    Route::new(Post, "/api/v1/tokens", AnyToken,
        "Creates a token, of no more than the caller's own reach. The secret is in this answer alone.",
        &[(201, Json("CreateTokenResponse"))], |m| on(m, tokens::create))
        .body("CreateToken"),
    Route::new(Post, "/api/v1/tokens/{token}/revoke", AnyToken, "Revokes a token, by its id or its unambiguous name.",
        &[(200, Json("Token"))], |m| on(m, tokens::revoke)),
    Route::new(Get, "/api/v1/whoami", AnyToken, "The caller's own token.",
        &[(200, Json("Token"))], |m| on(m, tokens::whoami)),
];
