-- Whether somebody ordered a denial, or a job left it at its end. Of older ones nobody knows any more: they count as ordered.
ALTER TABLE denials ADD COLUMN ordered INTEGER NOT NULL DEFAULT 1 CHECK (ordered IN (0, 1));
