-- A run is told apart by its submit time too: Slurm may give a job id again. 0: the session is older than this column.

ALTER TABLE sessions ADD COLUMN job_submitted INTEGER;
UPDATE sessions SET job_submitted = 0 WHERE job IS NOT NULL;

DROP INDEX sessions_run;
CREATE UNIQUE INDEX sessions_run ON sessions (cluster, job, restart, job_submitted) WHERE job IS NOT NULL;

-- All that the sweep reads, so that it need not look into the table; seq, so that the order is the listings'.
DROP INDEX active_cluster;
CREATE INDEX active_cluster ON sessions (cluster, opened, seq, id, job, restart, job_submitted, uid) WHERE status = 0;
