-- Ids are never used again (AUTOINCREMENT): a message taken from a queue that was deleted must not
-- settle one of a queue made later under the same name.
CREATE TABLE queue (
    id       INTEGER PRIMARY KEY AUTOINCREMENT,
    name     TEXT UNIQUE,                        -- NULL: deleted, its messages are being removed
    messages INTEGER NOT NULL DEFAULT 0,         -- kept with each batch, so that a start need not count
    bytes    INTEGER NOT NULL DEFAULT 0
) STRICT;

CREATE TABLE message (
    id         INTEGER PRIMARY KEY,              -- given by the writer, rising: the order of arrival
    queue      INTEGER NOT NULL,
    taken      INTEGER NOT NULL DEFAULT 0,       -- 1: handed out, not settled
    priority   INTEGER NOT NULL,
    deliveries INTEGER NOT NULL DEFAULT 0,       -- how often it was handed out
    dead_from  TEXT,                             -- of a dead letter: the queue that it was on,
    dead_why   TEXT,                             -- the reason,
    dead_at    INTEGER,                          -- and when, Unix milliseconds
    body       BLOB NOT NULL
) STRICT;

-- The next message of a queue is the first entry after (queue, 0), however many there are.
CREATE UNIQUE INDEX message_order ON message (queue, taken, priority DESC, id);
