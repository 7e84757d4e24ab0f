-- What each day (since the epoch, UTC) of a task took, by who answered: `stripped` or `whole` (what clients asked),
-- `audit` or `shadow` (what the gateway asked once more itself). Entered once an exchange's task is known, and kept when
-- the exchange is deleted: sums only.
CREATE TABLE task_days (
  task TEXT NOT NULL,
  day INTEGER NOT NULL,
  served TEXT NOT NULL,
  target TEXT NOT NULL,
  exchanges INTEGER NOT NULL,
  priced INTEGER NOT NULL,
  cost_usd REAL NOT NULL,
  timed INTEGER NOT NULL,
  latency_ms REAL NOT NULL,
  counted INTEGER NOT NULL,
  input_tokens INTEGER NOT NULL,
  PRIMARY KEY (task, day, served, target)
) WITHOUT ROWID;

INSERT INTO task_days
  SELECT task, CAST(started_at / 86400 AS INTEGER) AS day,
    CASE WHEN copy_of IS NULL THEN IIF(stripped, 'stripped', 'whole') ELSE IIF(stripped, 'shadow', 'audit') END
      AS served,
    target, COUNT(*), COUNT(cost_usd), TOTAL(cost_usd), COUNT(latency_ms), TOTAL(latency_ms), COUNT(input_tokens),
    COALESCE(SUM(input_tokens), 0)
  FROM exchanges
  WHERE task IS NOT NULL AND looked_at = 1 AND target IS NOT NULL AND status BETWEEN 200 AND 299
  GROUP BY task, day, served, target;
