-- Bodies recorded together stand in one block, compressed at once. body: a zstd frame (RFC 8878) of a count, the length of
-- each body (4 bytes each, little-endian), and then the bodies: a line of JSON with the headers, and the bytes. The
-- bodies of a block have the numbers from `first` on; size: of the bodies in all. A deleted body has length 0.
CREATE TABLE blocks (
  first INTEGER PRIMARY KEY,
  count INTEGER NOT NULL,
  size INTEGER NOT NULL,
  body BLOB NOT NULL
);

-- The numbers of an exchange's bodies. Where there is none, the body stands in the row (see packed).
ALTER TABLE exchanges ADD COLUMN request_at INTEGER;
ALTER TABLE exchanges ADD COLUMN response_at INTEGER;
