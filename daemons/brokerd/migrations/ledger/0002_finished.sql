-- `finished` is whether a job has ended, and not whether its tasks have: an open job of raw messages whose tasks are all
-- done still takes more, and retention must not have it.
UPDATE jobs SET finished = 0 WHERE finished = 1 AND finished_at = 0;
