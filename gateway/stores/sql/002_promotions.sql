-- promotions are noted before routes.yaml is written (state: writing) and settled after (done, or abandoned when
-- the file was never written); the file's text before and a hash of it after, for going back byte for byte
ALTER TABLE promotions ADD COLUMN state TEXT NOT NULL DEFAULT 'done';
ALTER TABLE promotions ADD COLUMN routes_after TEXT;
ALTER TABLE promotions ADD COLUMN file_before TEXT;
ALTER TABLE promotions ADD COLUMN file_after TEXT;
CREATE INDEX promotions_by_task ON promotions (task);

-- looked_at: 0 not yet, 1 yes, 2 yes and it is no chat request that a template could be found in
CREATE INDEX exchanges_unexplained ON exchanges (id) WHERE task IS NULL AND looked_at = 1;
