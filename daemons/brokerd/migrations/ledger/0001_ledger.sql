-- The ledger. 0, '' and false are stored as such only where that costs nothing; absent text is NULL.
--
-- A task's `state`: 0 ready and unpublished, 1 ready and published, 2 leased, and done as
-- 3 succeeded, 4 failed, 5 timed_out, 6 out_of_memory, 7 build_failed, 8 cancelled, 9 infrastructure_error.
--
-- `number`s are for joins within this file: they are small, while ids are what everybody else sees.

CREATE TABLE projects (
    name       TEXT PRIMARY KEY NOT NULL,
    quota      TEXT NOT NULL, -- JSON
    created_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE queues (
    name TEXT PRIMARY KEY NOT NULL
) WITHOUT ROWID;

CREATE TABLE tokens (
    id           TEXT PRIMARY KEY NOT NULL,
    name         TEXT NOT NULL,
    role         TEXT NOT NULL,
    projects     TEXT, -- JSON; NULL: everywhere
    hash         BLOB NOT NULL,
    created_at   INTEGER NOT NULL,
    expires_at   INTEGER NOT NULL,
    revoked_at   INTEGER NOT NULL,
    last_used_at INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE workers (
    name                   TEXT PRIMARY KEY NOT NULL,
    certificate_serial     TEXT NOT NULL,
    certificate_expires_at INTEGER NOT NULL,
    paused                 INTEGER NOT NULL,
    revoked                INTEGER NOT NULL,
    enrolled_at            INTEGER NOT NULL,
    last_seen_at           INTEGER NOT NULL
) WITHOUT ROWID;

-- `phase`: 0 begun and invisible, 1 committed, 2 being deleted and invisible again.
CREATE TABLE jobs (
    number          INTEGER PRIMARY KEY,
    id              TEXT NOT NULL UNIQUE,
    project         TEXT NOT NULL,
    phase           INTEGER NOT NULL,
    idempotency_key TEXT,
    spec            TEXT NOT NULL, -- JSON
    state           TEXT NOT NULL,
    finished        INTEGER NOT NULL, -- whether `state` is final
    counts          TEXT NOT NULL, -- JSON
    paused          INTEGER NOT NULL,
    cancelled       INTEGER NOT NULL,
    open            INTEGER NOT NULL,
    commit_id       TEXT,
    reduce          TEXT, -- JSON
    reduce_runs     INTEGER NOT NULL,
    reduced_run     INTEGER NOT NULL,
    submitted_by    TEXT NOT NULL,
    created_at      INTEGER NOT NULL,
    started_at      INTEGER NOT NULL,
    finished_at     INTEGER NOT NULL,
    message         TEXT
);

CREATE UNIQUE INDEX jobs_by_key ON jobs (project, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX jobs_by_project ON jobs (project, id);
CREATE INDEX jobs_invisible ON jobs (number) WHERE phase <> 1;
CREATE INDEX jobs_unfinished ON jobs (project, created_at) WHERE phase = 1 AND finished = 0;
CREATE INDEX jobs_finished ON jobs (finished_at, number) WHERE phase = 1 AND finished = 1;

-- How many tasks of a job are where, kept by the same transactions that move them; one row for its
-- tasks and one for its reduce steps.
CREATE TABLE tallies (
    job         INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    reduce      INTEGER NOT NULL,
    unpublished INTEGER NOT NULL DEFAULT 0,
    published   INTEGER NOT NULL DEFAULT 0,
    leased      INTEGER NOT NULL DEFAULT 0,
    succeeded   INTEGER NOT NULL DEFAULT 0,
    failed      INTEGER NOT NULL DEFAULT 0,
    cancelled   INTEGER NOT NULL DEFAULT 0,
    retried     INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (job, reduce)
) WITHOUT ROWID;

CREATE INDEX tallies_live ON tallies (job, reduce) WHERE unpublished + published + leased > 0;

-- Bytes of recorded results, kept in the same way.
CREATE TABLE holdings (
    project      TEXT PRIMARY KEY NOT NULL,
    result_bytes INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE tasks (
    number                  INTEGER PRIMARY KEY,
    job                     INTEGER NOT NULL REFERENCES jobs (number),
    id                      TEXT NOT NULL,
    seq                     INTEGER NOT NULL,
    reduce                  INTEGER NOT NULL,
    commit_id               TEXT,
    state                   INTEGER NOT NULL,
    not_before              INTEGER NOT NULL,
    attempt                 INTEGER NOT NULL,
    user_failures           INTEGER NOT NULL,
    infrastructure_failures INTEGER NOT NULL,
    cancel_requested        INTEGER NOT NULL,
    ready_at                INTEGER NOT NULL,
    version                 INTEGER NOT NULL,
    lease_token             TEXT,
    lease_worker            TEXT,
    leased_at               INTEGER,
    lease_deadline          INTEGER,
    UNIQUE (job, id)
);

CREATE INDEX tasks_by_state ON tasks (job, state, seq);
CREATE INDEX tasks_unpublished ON tasks (job, not_before, ready_at, seq) WHERE state = 0;
CREATE INDEX tasks_published ON tasks (job, id) WHERE state = 1;

-- Only of tasks that have something of their own.
CREATE TABLE task_specs (
    task INTEGER PRIMARY KEY REFERENCES tasks (number) ON DELETE CASCADE,
    spec TEXT NOT NULL -- JSON
);

-- `bytes` is what stdout and stderr weigh together.
CREATE TABLE results (
    task        INTEGER PRIMARY KEY REFERENCES tasks (number) ON DELETE CASCADE,
    bytes       INTEGER NOT NULL,
    attempt     INTEGER NOT NULL,
    outcome     INTEGER NOT NULL, -- as in `tasks.state`
    exit_code   INTEGER,
    signal      INTEGER,
    truncated   INTEGER NOT NULL, -- 1: stdout, 2: stderr, 3: both
    started_at  INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    queued_ms   INTEGER NOT NULL,
    checkout_ms INTEGER NOT NULL,
    build_ms    INTEGER NOT NULL,
    start_ms    INTEGER NOT NULL,
    run_ms      INTEGER NOT NULL,
    worker      TEXT,
    commit_id   TEXT,
    image       TEXT,
    message     TEXT,
    stdout      BLOB,
    stderr      BLOB
);

-- Results that the done queue has not confirmed. A table of its own, so that marking one does not
-- rewrite its megabytes.
CREATE TABLE unpublished_results (
    number INTEGER PRIMARY KEY,
    task   INTEGER NOT NULL UNIQUE REFERENCES results (task) ON DELETE CASCADE
);

CREATE TABLE attempts (
    task        INTEGER NOT NULL REFERENCES tasks (number) ON DELETE CASCADE,
    attempt     INTEGER NOT NULL,
    worker      TEXT NOT NULL,
    leased_at   INTEGER NOT NULL,
    finished_at INTEGER NOT NULL,
    outcome     INTEGER NOT NULL, -- as in `tasks.state`
    message     TEXT,
    PRIMARY KEY (task, attempt)
) WITHOUT ROWID;

CREATE TABLE builds (
    job        INTEGER NOT NULL REFERENCES jobs (number) ON DELETE CASCADE,
    worker     TEXT NOT NULL,
    image      TEXT NOT NULL,
    started_at INTEGER NOT NULL,
    build      TEXT NOT NULL, -- JSON
    PRIMARY KEY (job, worker, image)
);

-- Written to find out whether writing works.
CREATE TABLE pulse (
    number INTEGER PRIMARY KEY CHECK (number = 1),
    beats  INTEGER NOT NULL
);
