-- One SQLite file for a single run, a study or a comparison.
CREATE TABLE facts (name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

-- One row per replica. `slot` is its unique key in the study; `identity` is the content hash of its settings.
CREATE TABLE runs (
    id INTEGER PRIMARY KEY, slot TEXT NOT NULL UNIQUE, identity TEXT NOT NULL, data TEXT NOT NULL,
    test_set INTEGER NOT NULL, algorithm TEXT NOT NULL, trial INTEGER NOT NULL, replica INTEGER NOT NULL,
    hyperparameters TEXT NOT NULL, learning_rate TEXT NOT NULL, state TEXT NOT NULL DEFAULT 'planned',
    error TEXT, seconds REAL, p_value REAL, job INTEGER
);
CREATE INDEX runs_of_state ON runs (state, data, test_set, algorithm);
CREATE INDEX runs_of_job ON runs (job);

-- Sets of test environments. An empty set has a row in `test_sets` and none in `test_environments`.
CREATE TABLE test_sets (id INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE);
CREATE TABLE test_environments (
    test_set INTEGER NOT NULL, position INTEGER NOT NULL, name TEXT NOT NULL,
    PRIMARY KEY (test_set, position)
) WITHOUT ROWID;

-- Runs that train together. `record` is the JSON text of `training.record.Record.to_json`.
CREATE TABLE jobs (
    id INTEGER PRIMARY KEY, record TEXT, metric TEXT, higher_is_better INTEGER, done INTEGER NOT NULL DEFAULT 0
);

-- Measured values; environments, roles, metrics, kinds and columns are numbers of rows in `names`.
CREATE TABLE names (id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE history (
    run INTEGER NOT NULL, step INTEGER NOT NULL, environment INTEGER NOT NULL, role INTEGER NOT NULL,
    metric INTEGER NOT NULL, kind INTEGER NOT NULL, "column" INTEGER NOT NULL, value REAL,
    PRIMARY KEY (run, step, environment, role, metric, kind, "column")
) WITHOUT ROWID;
CREATE TABLE predictions (
    run INTEGER NOT NULL, environment INTEGER NOT NULL, role INTEGER NOT NULL, rows INTEGER NOT NULL,
    targets BLOB NOT NULL, logits BLOB NOT NULL, PRIMARY KEY (run, environment, role)
) WITHOUT ROWID;
