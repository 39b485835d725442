-- One SQLite file for a single run, a study or a comparison. SQLite detects damage to its own structure only, so
-- every row has a checksum of its values. It is NULL only inside a transaction, which computes it at its end.
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL, checksum INTEGER);

-- One row per replica. `slot` is its unique key in the study; `identity` is the content hash of its settings.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, slot TEXT NOT NULL UNIQUE, identity TEXT NOT NULL, data TEXT NOT NULL,
    test_set INTEGER NOT NULL, algorithm TEXT NOT NULL, trial INTEGER NOT NULL, replica INTEGER NOT NULL,
    hyperparameters TEXT NOT NULL, learning_rate TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'planned',
    error TEXT, seconds REAL, p_value REAL, job INTEGER, checksum INTEGER
);
CREATE INDEX runs_of_state ON runs (state, data, test_set, algorithm);
CREATE INDEX runs_of_job ON runs (job);

-- Sets of test environments. An empty set has a row in `test_sets` and none in `test_environments`.
CREATE TABLE test_sets (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, checksum INTEGER);
CREATE TABLE test_environments (
    test_set INTEGER NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL, checksum INTEGER,
    PRIMARY KEY (test_set, position)
);

-- Runs that train together. `record` is the JSON text of `training.record.Record.to_json`.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, record TEXT, metric TEXT, higher_is_better INTEGER, done INTEGER NOT NULL DEFAULT 0,
    checksum INTEGER
);

-- Measured values; environments, roles, metrics, kinds and columns are numbers of rows in `names`. There are
-- millions of rows, so that SQL verifies them: `copy` repeats the value, and `code` is computed from the key.
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, checksum INTEGER);
CREATE TABLE history (
    run INTEGER NOT NULL, step INTEGER NOT NULL, environment INTEGER NOT NULL, role INTEGER NOT NULL,
    metric INTEGER NOT NULL, kind INTEGER NOT NULL, "column" INTEGER NOT NULL, value REAL,
    copy REAL, code INTEGER NOT NULL,
    PRIMARY KEY (run, step, environment, role, metric, kind, "column")
) WITHOUT ROWID;
CREATE TABLE predictions (
    run INTEGER NOT NULL, environment INTEGER NOT NULL, role INTEGER NOT NULL, rows INTEGER NOT NULL,
    targets BLOB NOT NULL, logits BLOB NOT NULL, checksum INTEGER, PRIMARY KEY (run, environment, role)
);

-- Rows changed by the current transaction.
CREATE INDEX open_facts ON facts (checksum) WHERE checksum IS NULL;
CREATE INDEX open_runs ON runs (checksum) WHERE checksum IS NULL;
CREATE INDEX open_test_sets ON test_sets (checksum) WHERE checksum IS NULL;
CREATE INDEX open_test_environments ON test_environments (checksum) WHERE checksum IS NULL;
CREATE INDEX open_jobs ON jobs (checksum) WHERE checksum IS NULL;
CREATE INDEX open_names ON names (checksum) WHERE checksum IS NULL;
CREATE INDEX open_predictions ON predictions (checksum) WHERE checksum IS NULL;
