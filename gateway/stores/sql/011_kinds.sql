-- What many exchanges have in common stands once: 130 bytes of names in each row become two small numbers. `exchanges` is
-- a view over it, with the columns that it had as a table.

-- what requests have in common; exchanges: how many rows refer to it. At 0 it is deleted: the names in it may be those
-- of a deleted exchange. Two kinds may be alike: a recorder looks for those of late, not for all.
CREATE TABLE request_kinds (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  route TEXT,
  task_hint TEXT,
  provider TEXT NOT NULL,
  method TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  model_requested TEXT,
  key_id TEXT,
  exchanges INTEGER NOT NULL
);

-- what answers have in common; kind 0: there is none yet
CREATE TABLE response_kinds (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  model_served TEXT,
  target TEXT,
  stripped INTEGER NOT NULL,
  status INTEGER,
  streamed INTEGER NOT NULL,
  error_type TEXT,
  finish_reason TEXT,
  usage_source TEXT NOT NULL,
  exchanges INTEGER NOT NULL
);
INSERT INTO response_kinds VALUES (0, NULL, NULL, 0, NULL, 0, NULL, NULL, 'none', 0);

-- one row for each exchange: what is its own. `number` is in the order of recording, the rowid of `exchanges`; tags and
-- attempts are null where there are none
CREATE TABLE exchange_rows (
  number INTEGER PRIMARY KEY,
  id TEXT NOT NULL UNIQUE,
  started_at REAL NOT NULL,
  asked_as INTEGER NOT NULL,
  answered_as INTEGER NOT NULL DEFAULT 0,
  complete INTEGER NOT NULL DEFAULT 0,
  truncated INTEGER NOT NULL DEFAULT 0,
  looked_at INTEGER NOT NULL DEFAULT 0,
  task TEXT,
  task_version INTEGER,
  latency_ms REAL,
  ttft_ms REAL,
  input_tokens INTEGER,
  cached_tokens INTEGER,
  output_tokens INTEGER,
  reasoning_tokens INTEGER,
  cost_usd REAL,
  request_at INTEGER,
  response_at INTEGER,
  tags TEXT,
  attempts TEXT,
  copy_of TEXT
);

-- bodies of earlier releases, which stood in the row (see packed)
CREATE TABLE old_bodies (
  number INTEGER PRIMARY KEY,
  packed INTEGER NOT NULL,
  request_headers TEXT NOT NULL,
  response_headers TEXT NOT NULL,
  request BLOB,
  response BLOB
);

INSERT INTO request_kinds (route, task_hint, provider, method, endpoint, model_requested, key_id, exchanges)
  SELECT route, task_hint, provider, method, endpoint, model_requested, key_id, COUNT(*) FROM exchanges
  GROUP BY 1, 2, 3, 4, 5, 6, 7;
INSERT INTO response_kinds
    (model_served, target, stripped, status, streamed, error_type, finish_reason, usage_source, exchanges)
  SELECT model_served, target, stripped, status, streamed, error_type, finish_reason, usage_source, COUNT(*)
  FROM exchanges GROUP BY 1, 2, 3, 4, 5, 6, 7, 8;

-- found again by one text: a comparison that takes null for equal uses no index of its own making
CREATE TEMP TABLE asked_as (text TEXT PRIMARY KEY, id INTEGER) WITHOUT ROWID;
INSERT INTO asked_as
  SELECT json_array(route, task_hint, provider, method, endpoint, model_requested, key_id), id FROM request_kinds;
CREATE TEMP TABLE answered_as (text TEXT PRIMARY KEY, id INTEGER) WITHOUT ROWID;
INSERT OR IGNORE INTO answered_as
  SELECT json_array(model_served, target, stripped, status, streamed, error_type, finish_reason, usage_source), id
  FROM response_kinds ORDER BY id;
DELETE FROM response_kinds WHERE id NOT IN (SELECT id FROM answered_as);

INSERT INTO exchange_rows
  SELECT e.rowid, e.id, started_at, asked.id, answered.id, complete, truncated, looked_at, task, task_version,
    latency_ms, ttft_ms, input_tokens, cached_tokens, output_tokens, reasoning_tokens, cost_usd, request_at, response_at,
    NULLIF(tags, '{}'), NULLIF(attempts, '[]'), copy_of
  FROM exchanges e
  CROSS JOIN asked_as asked
    ON asked.text = json_array(route, task_hint, provider, method, endpoint, model_requested, key_id)
  CROSS JOIN answered_as answered ON answered.text =
    json_array(model_served, target, stripped, status, streamed, error_type, finish_reason, usage_source)
  ORDER BY e.rowid;
INSERT INTO old_bodies
  SELECT rowid, packed, request_headers, response_headers, request, response FROM exchanges
  WHERE packed > 0 OR request IS NOT NULL OR response IS NOT NULL OR request_headers != '{}' OR response_headers != '{}';
DROP TABLE temp.asked_as;
DROP TABLE temp.answered_as;
DROP TABLE exchanges;

CREATE INDEX exchanges_by_task ON exchange_rows (task) WHERE task IS NOT NULL;
CREATE INDEX exchanges_to_look_at ON exchange_rows (looked_at) WHERE looked_at = 0 AND complete = 1;
CREATE INDEX exchanges_unexplained ON exchange_rows (looked_at)
  WHERE task IS NULL AND looked_at = 1 AND complete = 1 AND truncated = 0;
CREATE INDEX exchanges_copies ON exchange_rows (task, id) WHERE copy_of IS NOT NULL;

-- Not by a join: what a query does not ask for is not looked up, and none is tempted to start at the kinds.
CREATE VIEW exchanges AS
  SELECT
    r.id,
    r.started_at,
    (SELECT route FROM request_kinds k WHERE k.id = r.asked_as) AS route,
    r.task,
    r.task_version,
    (SELECT task_hint FROM request_kinds k WHERE k.id = r.asked_as) AS task_hint,
    (SELECT provider FROM request_kinds k WHERE k.id = r.asked_as) AS provider,
    (SELECT method FROM request_kinds k WHERE k.id = r.asked_as) AS method,
    (SELECT endpoint FROM request_kinds k WHERE k.id = r.asked_as) AS endpoint,
    (SELECT model_requested FROM request_kinds k WHERE k.id = r.asked_as) AS model_requested,
    (SELECT model_served FROM response_kinds k WHERE k.id = r.answered_as) AS model_served,
    (SELECT target FROM response_kinds k WHERE k.id = r.answered_as) AS target,
    (SELECT stripped FROM response_kinds k WHERE k.id = r.answered_as) AS stripped,
    (SELECT status FROM response_kinds k WHERE k.id = r.answered_as) AS status,
    (SELECT streamed FROM response_kinds k WHERE k.id = r.answered_as) AS streamed,
    r.complete,
    (SELECT error_type FROM response_kinds k WHERE k.id = r.answered_as) AS error_type,
    (SELECT finish_reason FROM response_kinds k WHERE k.id = r.answered_as) AS finish_reason,
    r.latency_ms,
    r.ttft_ms,
    r.input_tokens,
    r.cached_tokens,
    r.output_tokens,
    r.reasoning_tokens,
    (SELECT usage_source FROM response_kinds k WHERE k.id = r.answered_as) AS usage_source,
    r.cost_usd,
    COALESCE(r.tags, '{}') AS tags,
    (SELECT key_id FROM request_kinds k WHERE k.id = r.asked_as) AS key_id,
    COALESCE(r.attempts, '[]') AS attempts,
    COALESCE((SELECT request_headers FROM old_bodies o WHERE o.number = r.number), '{}') AS request_headers,
    COALESCE((SELECT response_headers FROM old_bodies o WHERE o.number = r.number), '{}') AS response_headers,
    r.truncated,
    r.looked_at,
    (SELECT request FROM old_bodies o WHERE o.number = r.number) AS request,
    (SELECT response FROM old_bodies o WHERE o.number = r.number) AS response,
    COALESCE((SELECT packed FROM old_bodies o WHERE o.number = r.number), 0) AS packed,
    r.request_at,
    r.response_at,
    r.copy_of,
    r.number AS rowid
  FROM exchange_rows r;
