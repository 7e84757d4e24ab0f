-- packed: which of the two bodies are compressed: 0 none, 1 request, 2 response, 3 both. A compressed body is one zstd
-- frame (RFC 8878) of a line of JSON with the headers and then the bytes; the frame's header names its dictionary
-- (0: none) by its id in `dictionaries`. `unprompt show ID` and `unprompt export` print them as they were. The columns
-- request_headers and response_headers are for bodies that are not compressed.
ALTER TABLE exchanges ADD COLUMN packed INTEGER NOT NULL DEFAULT 0;

-- used_for: the kind of body; sources: ids of the exchanges from whose text it was made; retired: 1 when one of them
-- was deleted: nothing is compressed with it any more, and its body goes (null) when nothing refers to it
CREATE TABLE dictionaries (
  id INTEGER PRIMARY KEY,
  used_for TEXT NOT NULL,
  created_at REAL NOT NULL,
  retired INTEGER NOT NULL DEFAULT 0,
  sources TEXT NOT NULL,
  body BLOB
);

-- deleted exchanges of which traces may be left elsewhere (dictionaries, datasets, journal): a prune that was
-- interrupted goes on from here
CREATE TABLE deletions (
  exchange_id TEXT PRIMARY KEY
) WITHOUT ROWID;

-- Ids are time-ordered and long; an index entry ends in the rowid anyway, which has the order of recording.
DROP INDEX exchanges_by_task;
DROP INDEX exchanges_to_look_at;
DROP INDEX exchanges_unexplained;
CREATE INDEX exchanges_by_task ON exchanges (task) WHERE task IS NOT NULL;
CREATE INDEX exchanges_to_look_at ON exchanges (looked_at) WHERE looked_at = 0 AND complete = 1;
CREATE INDEX exchanges_unexplained ON exchanges (looked_at)
  WHERE task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0;

-- Counted by whoever adds, changes or deletes rows, in the same transaction, so that no poll ever reads all rows of a
-- task (not by triggers: with one, SQLite keeps a copy of each page for each statement, which doubles the cost of a
-- row). The row '' counts the exchanges that belong to no task although they were looked at and could be read.
CREATE TABLE task_stats (
  task TEXT PRIMARY KEY,
  exchanges INTEGER NOT NULL,
  answered INTEGER NOT NULL,
  stripped INTEGER NOT NULL,
  priced INTEGER NOT NULL,
  cost_usd REAL NOT NULL
) WITHOUT ROWID;

INSERT INTO task_stats
  SELECT COALESCE(task, '') AS name, COUNT(*),
    SUM(complete = 1 AND truncated = 0 AND stripped = 0 AND COALESCE(status, 0) BETWEEN 200 AND 299),
    SUM(stripped), COUNT(cost_usd), TOTAL(cost_usd)
  FROM exchanges
  WHERE task IS NOT NULL OR (looked_at = 1 AND complete = 1 AND truncated = 0)
  GROUP BY name;
