-- The certificate that the newest was renewed with: accepted beside it until it expires, because the answer may have been lost.
ALTER TABLE workers ADD COLUMN previous_serial TEXT NOT NULL DEFAULT '';
