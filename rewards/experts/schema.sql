-- The folder's one database. `chain` is what happened; the other tables are what follows from it, and what is under way.

CREATE TABLE IF NOT EXISTS chain (
    seq INTEGER PRIMARY KEY, at REAL NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, hash TEXT NOT NULL
) STRICT;
CREATE TRIGGER IF NOT EXISTS chain_keeps_rows BEFORE UPDATE ON chain
    BEGIN SELECT RAISE(ABORT, 'the audit chain is append-only: no row may be changed'); END;
CREATE TRIGGER IF NOT EXISTS chain_loses_none BEFORE DELETE ON chain
    BEGIN SELECT RAISE(ABORT, 'the audit chain is append-only: no row may be deleted'); END;
CREATE TRIGGER IF NOT EXISTS chain_only_grows BEFORE INSERT ON chain
    WHEN NEW.seq <= (SELECT max(seq) FROM chain)  -- INSERT OR REPLACE would delete without asking the other trigger
    BEGIN SELECT RAISE(ABORT, 'the audit chain is append-only: a row comes last'); END;

CREATE TABLE IF NOT EXISTS raters (
    name TEXT PRIMARY KEY, crisis INTEGER NOT NULL, sitting INTEGER NOT NULL DEFAULT 0, at REAL NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS tokens (  -- never the token itself: its sha256
    hash TEXT PRIMARY KEY, role TEXT NOT NULL, rater TEXT REFERENCES raters (name), expires REAL, shut INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS tokens_of_rater ON tokens (rater);

CREATE TABLE IF NOT EXISTS items (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, history TEXT NOT NULL, reply TEXT NOT NULL,
    tier TEXT NOT NULL, wanted INTEGER NOT NULL, priority REAL NOT NULL, origin TEXT NOT NULL, at REAL NOT NULL,
    open INTEGER NOT NULL DEFAULT 1,  -- 0: nobody needs it any more
    raters INTEGER NOT NULL,          -- `wanted`, or more in the overlap set
    rated INTEGER NOT NULL DEFAULT 0  -- ratings that stand, without repeats
) STRICT;
DROP INDEX IF EXISTS items_waiting;  -- of folders made before turns went by id
CREATE INDEX IF NOT EXISTS items_by_turn ON items (priority DESC, id) WHERE open = 1 AND rated < raters;

CREATE TABLE IF NOT EXISTS leases (
    lease TEXT PRIMARY KEY, item TEXT NOT NULL REFERENCES items (id), rater TEXT NOT NULL REFERENCES raters (name),
    given REAL NOT NULL, expires REAL NOT NULL, repeat INTEGER NOT NULL, state TEXT NOT NULL, draft TEXT
) STRICT;
CREATE INDEX IF NOT EXISTS leases_of_rater ON leases (rater, state);
CREATE INDEX IF NOT EXISTS leases_of_item ON leases (item, rater, state);
CREATE TRIGGER IF NOT EXISTS leases_end_without_draft AFTER UPDATE OF state ON leases
    WHEN NEW.state NOT IN ('held', 'aside') AND NEW.draft IS NOT NULL
    BEGIN UPDATE leases SET draft = NULL WHERE lease = NEW.lease; END;
UPDATE leases SET draft = NULL WHERE state NOT IN ('held', 'aside') AND draft IS NOT NULL;  -- left by services without that trigger

CREATE TABLE IF NOT EXISTS ratings (
    seq INTEGER PRIMARY KEY REFERENCES chain (seq), id TEXT NOT NULL UNIQUE, item TEXT NOT NULL REFERENCES items (id),
    rater TEXT NOT NULL REFERENCES raters (name), lease TEXT NOT NULL REFERENCES leases (lease),
    submission TEXT NOT NULL UNIQUE, content TEXT NOT NULL, body TEXT NOT NULL, repeat INTEGER NOT NULL,
    sitting INTEGER NOT NULL, at REAL NOT NULL, undone INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS ratings_of_rater ON ratings (rater, seq);
CREATE INDEX IF NOT EXISTS ratings_of_item ON ratings (item);

CREATE TABLE IF NOT EXISTS rewards (
    item TEXT PRIMARY KEY REFERENCES items (id), seq INTEGER NOT NULL REFERENCES chain (seq), body TEXT NOT NULL
) STRICT;
CREATE TABLE IF NOT EXISTS events (  -- the newest of each kind and run
    kind TEXT NOT NULL, run TEXT NOT NULL, seq INTEGER NOT NULL REFERENCES chain (seq), body TEXT NOT NULL, PRIMARY KEY (kind, run)
) STRICT;
CREATE TABLE IF NOT EXISTS secrets (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

-- Side by side: two replies to one conversation, told by no rater's page whose they are. `same`: one text twice, nobody is asked.
CREATE TABLE IF NOT EXISTS comparisons (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, key TEXT NOT NULL, history TEXT NOT NULL,
    first_arm TEXT NOT NULL, second_arm TEXT NOT NULL, first TEXT NOT NULL, second TEXT NOT NULL, tier TEXT NOT NULL,
    raters INTEGER NOT NULL, seed INTEGER NOT NULL, same INTEGER NOT NULL, at REAL NOT NULL,
    open INTEGER NOT NULL DEFAULT 1,
    judged INTEGER NOT NULL DEFAULT 0  -- judgements that stand, without repeats
) STRICT;
CREATE INDEX IF NOT EXISTS comparisons_by_turn ON comparisons (id) WHERE open = 1 AND same = 0 AND judged < raters;

CREATE TABLE IF NOT EXISTS comparison_leases (
    lease TEXT PRIMARY KEY, comparison TEXT NOT NULL REFERENCES comparisons (id),
    rater TEXT NOT NULL REFERENCES raters (name), given REAL NOT NULL, expires REAL NOT NULL, repeat INTEGER NOT NULL,
    swapped INTEGER NOT NULL,  -- 1: the second arm's reply is A
    state TEXT NOT NULL
) STRICT;
CREATE INDEX IF NOT EXISTS comparison_leases_of_rater ON comparison_leases (rater, state);
CREATE INDEX IF NOT EXISTS comparison_leases_of_comparison ON comparison_leases (comparison, rater, state);

CREATE TABLE IF NOT EXISTS judgements (
    seq INTEGER PRIMARY KEY REFERENCES chain (seq), id TEXT NOT NULL UNIQUE,
    comparison TEXT NOT NULL REFERENCES comparisons (id), rater TEXT NOT NULL REFERENCES raters (name),
    lease TEXT NOT NULL REFERENCES comparison_leases (lease), submission TEXT NOT NULL UNIQUE, content TEXT NOT NULL,
    body TEXT NOT NULL, repeat INTEGER NOT NULL, sitting INTEGER NOT NULL, at REAL NOT NULL,
    undone INTEGER NOT NULL DEFAULT 0
) STRICT;
CREATE INDEX IF NOT EXISTS judgements_of_rater ON judgements (rater, seq);
CREATE INDEX IF NOT EXISTS judgements_of_comparison ON judgements (comparison);
