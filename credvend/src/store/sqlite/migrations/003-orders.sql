-- Revocations grow: orders, blocks, what nodes are told and have answered, and denials of more kinds than a user id.

ALTER TABLE issuances ADD COLUMN source_identity TEXT;
CREATE INDEX issuances_project ON issuances (project, expires);
CREATE INDEX issuances_role ON issuances (role_arn, expires);
CREATE INDEX issuances_node ON issuances (cluster, node, expires) WHERE node IS NOT NULL;

-- `kind`: 0 source identity, 1 user id, 2 everyone (`name` is empty).
CREATE TABLE denials (
    role_arn      TEXT NOT NULL,
    kind          INTEGER NOT NULL CHECK (kind IN (0, 1, 2)),
    name          TEXT NOT NULL,
    issued_before INTEGER NOT NULL,
    until         INTEGER NOT NULL,
    PRIMARY KEY (role_arn, kind, name)
) STRICT, WITHOUT ROWID;
INSERT INTO denials SELECT role_arn, 1, userid, issued_before, until FROM revocations;
DROP TABLE revocations;
CREATE INDEX denials_until ON denials (until);

-- `body` is the order as JSON; what is asked for has its own column.
CREATE TABLE orders (
    seq  INTEGER PRIMARY KEY,
    id   BLOB NOT NULL UNIQUE,
    at   INTEGER NOT NULL,
    done INTEGER,
    body TEXT NOT NULL
) STRICT;
CREATE INDEX orders_at ON orders (at);
CREATE INDEX orders_open ON orders (at) WHERE done IS NULL;
CREATE INDEX orders_done ON orders (done) WHERE done IS NOT NULL;

CREATE TABLE blocks (
    subject TEXT PRIMARY KEY,
    body    TEXT NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE news (
    cluster TEXT NOT NULL,
    number  INTEGER NOT NULL,
    at      INTEGER NOT NULL,
    body    TEXT NOT NULL,
    PRIMARY KEY (cluster, number)
) STRICT, WITHOUT ROWID;
CREATE INDEX news_at ON news (at);
-- Outlives what is pruned.
CREATE TABLE newest_news (
    cluster TEXT PRIMARY KEY,
    number  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

CREATE TABLE heard (
    order_id BLOB NOT NULL,
    cluster  TEXT NOT NULL,
    node     TEXT NOT NULL,
    PRIMARY KEY (order_id, cluster, node)
) STRICT, WITHOUT ROWID;

CREATE TABLE leases (
    name   TEXT PRIMARY KEY,
    holder TEXT NOT NULL,
    until  INTEGER NOT NULL
) STRICT, WITHOUT ROWID;

-- One row: which store this is.
CREATE TABLE identity (
    one   INTEGER PRIMARY KEY CHECK (one = 1),
    epoch TEXT NOT NULL
) STRICT;
INSERT INTO identity VALUES (1, lower(hex(randomblob(16))));
