-- What this user submitted and saw, by broker; a copy for reading without a broker, never the truth.
CREATE TABLE jobs (
    broker       TEXT    NOT NULL,
    job_id       TEXT    NOT NULL,
    project      TEXT    NOT NULL,
    name         TEXT    NOT NULL,
    state        TEXT    NOT NULL,
    total        INTEGER NOT NULL,
    succeeded    INTEGER NOT NULL,
    failed       INTEGER NOT NULL,
    cancelled    INTEGER NOT NULL,
    git_url      TEXT    NOT NULL,
    commit_id    TEXT    NOT NULL,
    command      TEXT    NOT NULL,
    message      TEXT    NOT NULL,
    answer_name  TEXT    NOT NULL,
    answer_bytes INTEGER NOT NULL,
    created_at   INTEGER NOT NULL, -- Unix milliseconds, as all times
    started_at   INTEGER NOT NULL, -- 0: not yet
    finished_at  INTEGER NOT NULL, -- 0: not yet
    submitted_at INTEGER NOT NULL, -- 0: only seen from here
    seen_at      INTEGER NOT NULL,
    PRIMARY KEY (broker, job_id)
) STRICT, WITHOUT ROWID;

CREATE INDEX jobs_by_time ON jobs (created_at, job_id);
