-- Times are microseconds since 1970 (UTC). Tokens are stored as hashes only. `status`: 0 ACTIVE, 1 INVALIDATED, 2 COMPLETED.

CREATE TABLE sessions (
    seq          INTEGER PRIMARY KEY,
    id           BLOB NOT NULL UNIQUE,
    cluster      TEXT NOT NULL,
    user         TEXT NOT NULL,
    uid          INTEGER,
    project      TEXT NOT NULL,
    partition    TEXT,
    nodes        TEXT NOT NULL,
    job          INTEGER,
    restart      INTEGER,
    head_session TEXT,
    submitted    TEXT,
    token        TEXT,
    opened       INTEGER NOT NULL,
    ended        INTEGER,
    status       INTEGER NOT NULL CHECK (status IN (0, 1, 2)),
    why          TEXT,
    CHECK ((status = 0) = (ended IS NULL)),
    CHECK ((job IS NULL) = (restart IS NULL)),
    CHECK ((head_session IS NULL) = (submitted IS NULL) AND (head_session IS NULL) = (token IS NULL)),
    CHECK ((job IS NULL) <> (head_session IS NULL))
) STRICT;

-- What makes opening idempotent.
CREATE UNIQUE INDEX sessions_run ON sessions (cluster, job, restart) WHERE job IS NOT NULL;
CREATE UNIQUE INDEX sessions_head ON sessions (cluster, head_session, submitted) WHERE head_session IS NOT NULL;
CREATE INDEX sessions_head_newest ON sessions (head_session, cluster, opened) WHERE head_session IS NOT NULL;

-- Listings, newest first. The partial ones stay as small as what is open.
CREATE INDEX sessions_opened ON sessions (opened);
CREATE INDEX sessions_status ON sessions (status, opened);
CREATE INDEX sessions_cluster ON sessions (cluster, opened);
CREATE INDEX sessions_user ON sessions (user, opened);
CREATE INDEX sessions_project ON sessions (project, opened);
CREATE INDEX sessions_job ON sessions (job, opened) WHERE job IS NOT NULL;
CREATE INDEX active_cluster ON sessions (cluster, opened) WHERE status = 0;
CREATE INDEX active_user ON sessions (user, opened) WHERE status = 0;
CREATE INDEX active_project ON sessions (project, opened) WHERE status = 0;
-- Pruning.
CREATE INDEX sessions_ended ON sessions (ended) WHERE ended IS NOT NULL;

CREATE TABLE issuances (
    seq          INTEGER PRIMARY KEY,
    session      BLOB NOT NULL,
    user         TEXT NOT NULL,
    cluster      TEXT NOT NULL,
    project      TEXT NOT NULL,
    role         TEXT NOT NULL,
    role_arn     TEXT NOT NULL,
    role_id      TEXT NOT NULL,
    session_name TEXT NOT NULL,
    key_id       TEXT NOT NULL,
    node         TEXT,
    issued       INTEGER NOT NULL,
    expires      INTEGER NOT NULL
) STRICT;

CREATE UNIQUE INDEX issuances_key ON issuances (session, key_id);
CREATE INDEX issuances_session ON issuances (session, expires);
CREATE INDEX issuances_user ON issuances (user, expires);
CREATE INDEX issuances_expires ON issuances (expires);

CREATE TABLE nonces (
    nonce   TEXT PRIMARY KEY,
    expires INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE INDEX nonces_expires ON nonces (expires);

CREATE TABLE revocations (
    role_arn      TEXT NOT NULL,
    userid        TEXT NOT NULL,
    issued_before INTEGER NOT NULL,
    until         INTEGER NOT NULL,
    PRIMARY KEY (role_arn, userid)
) STRICT, WITHOUT ROWID;

CREATE INDEX revocations_until ON revocations (until);

-- One row: written to show that the database can be written.
CREATE TABLE heartbeat (
    one INTEGER PRIMARY KEY CHECK (one = 1),
    at  INTEGER NOT NULL
) STRICT;
