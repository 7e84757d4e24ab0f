-- The client's own exchange whose request the gateway sent once more: whole, beside a stripped one (an audit), or
-- stripped, beside a whole one (a shadow). Null for what a client asked.
ALTER TABLE exchanges ADD COLUMN copy_of TEXT;
CREATE INDEX exchanges_copies ON exchanges (task, id) WHERE copy_of IS NOT NULL;
