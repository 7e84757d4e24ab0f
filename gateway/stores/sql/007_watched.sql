-- state: proposed (found in few requests: it may still change, gives no training rows and is not stripped), trusted
-- (final), drifting (a slot holds text that it did not hold before: not stripped until that text has a version of its
-- own, or a person confirms it). remark: why it is drifting.
ALTER TABLE templates ADD COLUMN state TEXT NOT NULL DEFAULT 'trusted';
ALTER TABLE templates ADD COLUMN remark TEXT;

-- The requests of each hour (since the epoch, UTC) by what became of them: `matched`, or the code of the reason why
-- they do not match the version that they resemble most.
CREATE TABLE template_matches (
  task TEXT NOT NULL,
  version INTEGER NOT NULL,
  hour INTEGER NOT NULL,
  result TEXT NOT NULL,
  exchanges INTEGER NOT NULL,
  PRIMARY KEY (task, version, hour, result)
) WITHOUT ROWID;

INSERT INTO template_matches
  SELECT task, task_version, CAST(started_at / 3600 AS INTEGER) AS hour, 'matched', COUNT(*)
  FROM exchanges WHERE task IS NOT NULL AND task_version IS NOT NULL
  GROUP BY task, task_version, hour;
CREATE INDEX templates_by_state ON templates (state);

-- why its requests need a look, null when they do not
ALTER TABLE tasks ADD COLUMN alarm TEXT;
