-- exchanges: one row per request. Times in milliseconds, started_at in seconds since the epoch (UTC).
-- request and response are the bytes as the client sent and received them (credentials blanked).
CREATE TABLE exchanges (
  id TEXT PRIMARY KEY,
  started_at REAL NOT NULL,
  route TEXT,
  task TEXT,
  task_version INTEGER,
  task_hint TEXT,
  provider TEXT NOT NULL,
  method TEXT NOT NULL,
  endpoint TEXT NOT NULL,
  model_requested TEXT,
  model_served TEXT,
  target TEXT,
  stripped INTEGER NOT NULL DEFAULT 0,
  status INTEGER,
  streamed INTEGER NOT NULL DEFAULT 0,
  complete INTEGER NOT NULL DEFAULT 0,
  error_type TEXT,
  finish_reason TEXT,
  latency_ms REAL,
  ttft_ms REAL,
  input_tokens INTEGER,
  cached_tokens INTEGER,
  output_tokens INTEGER,
  reasoning_tokens INTEGER,
  usage_source TEXT NOT NULL DEFAULT 'none',
  cost_usd REAL,
  tags TEXT NOT NULL DEFAULT '{}',
  key_id TEXT,
  attempts TEXT NOT NULL DEFAULT '[]',
  request_headers TEXT NOT NULL DEFAULT '{}',
  response_headers TEXT NOT NULL DEFAULT '{}',
  truncated INTEGER NOT NULL DEFAULT 0,
  looked_at INTEGER NOT NULL DEFAULT 0,
  request BLOB,
  response BLOB
);
CREATE INDEX exchanges_by_task ON exchanges (task, id);
CREATE INDEX exchanges_to_look_at ON exchanges (id) WHERE looked_at = 0 AND complete = 1;

-- how far each journal segment has been moved into this store
CREATE TABLE journal (
  segment TEXT PRIMARY KEY,
  offset INTEGER NOT NULL
);

CREATE TABLE tasks (
  name TEXT PRIMARY KEY,
  kind TEXT,
  created_at REAL NOT NULL
);

-- body: the template as JSON (gateway.domain.template.PromptTemplate)
CREATE TABLE templates (
  name TEXT PRIMARY KEY,
  task TEXT NOT NULL REFERENCES tasks (name),
  version INTEGER NOT NULL,
  body TEXT NOT NULL,
  created_at REAL NOT NULL
);

CREATE TABLE datasets (
  id TEXT PRIMARY KEY,
  task TEXT NOT NULL REFERENCES tasks (name),
  template TEXT NOT NULL,
  directory TEXT NOT NULL,
  digest TEXT NOT NULL,
  train_rows INTEGER NOT NULL,
  validation_rows INTEGER NOT NULL,
  card TEXT NOT NULL,
  created_at REAL NOT NULL
);

CREATE TABLE finetunes (
  id TEXT PRIMARY KEY,
  task TEXT NOT NULL,
  dataset TEXT NOT NULL REFERENCES datasets (id),
  trainer TEXT NOT NULL,
  options TEXT NOT NULL,
  state TEXT NOT NULL,
  stage TEXT NOT NULL,
  remote TEXT NOT NULL,
  upstream TEXT,
  model TEXT,
  error TEXT,
  metrics TEXT NOT NULL,
  created_at REAL NOT NULL,
  updated_at REAL NOT NULL
);
CREATE INDEX finetunes_by_dataset ON finetunes (dataset);

CREATE TABLE evaluations (
  id TEXT PRIMARY KEY,
  task TEXT NOT NULL,
  dataset TEXT NOT NULL,
  report TEXT NOT NULL,
  created_at REAL NOT NULL
);

CREATE TABLE promotions (
  id TEXT PRIMARY KEY,
  task TEXT NOT NULL,
  action TEXT NOT NULL,
  target TEXT,
  decision TEXT NOT NULL,
  routes_before TEXT,
  created_at REAL NOT NULL
);

CREATE TABLE feedback (
  id TEXT PRIMARY KEY,
  exchange_id TEXT NOT NULL,
  score REAL,
  label TEXT,
  corrected_output TEXT,
  comment TEXT,
  created_at REAL NOT NULL
);
CREATE INDEX feedback_by_exchange ON feedback (exchange_id);

-- one row per background job; state: waiting | running | done | failed
CREATE TABLE jobs (
  id TEXT PRIMARY KEY,
  kind TEXT NOT NULL,
  task TEXT NOT NULL,
  state TEXT NOT NULL,
  step TEXT NOT NULL,
  detail TEXT NOT NULL,
  error TEXT,
  created_at REAL NOT NULL,
  updated_at REAL NOT NULL
);
