-- What is known of the candidate that a task's route leads to: JSON (gateway.pipeline.alarms.Watched), with how far
-- its exchanges have been read.
CREATE TABLE watches (
  task TEXT PRIMARY KEY,
  state TEXT NOT NULL,
  updated_at REAL NOT NULL
) WITHOUT ROWID;

-- kind: agreement, errors, latency, cost, input_drift, output_drift or shutdown; action: log, retrain or rollback;
-- figures: JSON; cleared_at: null while it is raised
CREATE TABLE alarms (
  id TEXT PRIMARY KEY,
  task TEXT NOT NULL,
  kind TEXT NOT NULL,
  action TEXT NOT NULL,
  sentence TEXT NOT NULL,
  figures TEXT NOT NULL,
  created_at REAL NOT NULL,
  cleared_at REAL
);
CREATE INDEX alarms_by_task ON alarms (task);

-- the steps (JSON, gateway.pipeline.canary.Step) that come after this one
ALTER TABLE promotions ADD COLUMN steps TEXT;
