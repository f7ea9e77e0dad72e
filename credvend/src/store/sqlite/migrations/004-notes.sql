-- What parts of credvend must know after a restart, by kind and key.
CREATE TABLE notes (
    seq  INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    key  TEXT NOT NULL,
    text TEXT NOT NULL,
    UNIQUE (kind, key)
) STRICT;
CREATE INDEX notes_listed ON notes (kind, seq);
