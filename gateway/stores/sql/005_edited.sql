-- pinned: inference adds no version to the task
ALTER TABLE tasks ADD COLUMN pinned INTEGER NOT NULL DEFAULT 0;

-- edited: a person made this version (with 'unprompt tasks import' or 'edit'); else inference found it
ALTER TABLE templates ADD COLUMN edited INTEGER NOT NULL DEFAULT 0;
