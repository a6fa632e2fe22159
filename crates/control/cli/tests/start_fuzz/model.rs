//! What the databases of a cluster hold, as far as the fuzzer put it there: kept beside the cluster, and observed in it.

use std::collections::BTreeMap;

use crate::Cluster;

/// What stands behind a tablespace's name.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TablespaceKind {
    /// A folder of the user's.
    Folder,
    /// `LOCATION ''`: a folder in the data directory.
    InPlace,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RelationKind {
    Table,
    /// Empty after every start.
    Unlogged,
    MaterializedView,
    /// Its rows are its last value, which a crash may advance.
    Sequence,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Relation {
    pub kind: RelationKind,
    pub rows: i64,
    /// Empty for the database's own.
    pub tablespace: String,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Database {
    pub tablespace: String,
    pub relations: BTreeMap<String, Relation>,
    pub large_objects: i64,
    pub subscriptions: i64,
}

/// What a prepared transaction did, which only the model knows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Change {
    /// Rows in a table.
    Insert(String, i64),
    /// A table of its own.
    Create(String, Relation),
    Unknown,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Prepared {
    pub database: String,
    pub change: Change,
}

#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Model {
    pub tablespaces: BTreeMap<String, TablespaceKind>,
    pub databases: BTreeMap<String, Database>,
    pub prepared: BTreeMap<String, Prepared>,
}

impl Model {
    /// What a start changes: nothing unlogged outlives it.
    pub fn restart(&mut self) {
        for database in self.databases.values_mut() {
            for relation in database.relations.values_mut() {
                if relation.kind == RelationKind::Unlogged {
                    relation.rows = 0;
                }
            }
        }
    }

    /// What differs from what was observed; `None` if nothing does.
    pub fn difference(&self, observed: &Model) -> Option<String> {
        if self.tablespaces.keys().ne(observed.tablespaces.keys()) {
            return Some(format!("tablespaces {:?}", observed.tablespaces.keys()));
        }
        if self.databases.keys().ne(observed.databases.keys()) {
            return Some(format!("databases {:?}", observed.databases.keys()));
        }
        let gids = |model: &Model| -> Vec<(String, String)> {
            let gids = model.prepared.iter();
            gids.map(|(gid, prepared)| (gid.clone(), prepared.database.clone())).collect()
        };
        if gids(self) != gids(observed) {
            return Some(format!("prepared {:?}", observed.prepared));
        }
        let mut databases = self.databases.iter().zip(observed.databases.values());
        databases.find_map(|((name, expected), found)| {
            let agree = expected.relations.keys().eq(found.relations.keys())
                && expected.relations.values().zip(found.relations.values()).all(|(expected, found)| {
                    let advanced = expected.kind == RelationKind::Sequence && found.rows >= expected.rows;
                    *expected == *found || (advanced && found.kind == expected.kind)
                });
            let plain = |database: &Database| {
                (database.tablespace.clone(), database.large_objects, database.subscriptions)
            };
            (!agree || plain(expected) != plain(found))
                .then(|| format!("database {name}: expected {expected:?}, found {found:?}"))
        })
    }

    /// Takes over what only the cluster knows: how far sequences have come.
    pub fn learn(&mut self, observed: &Model) {
        for (name, database) in &mut self.databases {
            database.relations.clone_from(&observed.databases[name].relations);
        }
    }

    /// What the next start will find among the volume's small values.
    pub fn meta_kinds(&self) -> Vec<&'static str> {
        let mut kinds = vec!["counters", "control file", "small file", "relation map", "database"];
        let mut add = |present: bool, kind| kinds.extend(present.then_some(kind));
        let in_place = |kind: &TablespaceKind| *kind == TablespaceKind::InPlace;
        add(!self.tablespaces.is_empty(), "tablespace");
        add(self.tablespaces.values().any(in_place), "tablespace in place");
        add(!self.prepared.is_empty(), "prepared transaction");
        add(self.databases.values().any(|it| it.tablespace != "pg_default"), "database in a tablespace");
        let several = |it: &Database| it.relations.values().any(|relation| !relation.tablespace.is_empty());
        add(self.databases.values().any(several), "database with several folders");
        kinds
    }
}

const RELATIONS: &str = "SELECT c.relname::text, c.relkind::text, c.relpersistence::text, \
     coalesce(s.spcname::text, '') FROM pg_class c LEFT JOIN pg_tablespace s ON s.oid = c.reltablespace \
     WHERE c.relnamespace = 'public'::regnamespace AND c.relkind IN ('r', 'm', 'S') ORDER BY 1";

/// What the cluster holds, and the databases whose removal was interrupted (`datconnlimit = -2`).
pub fn observe(cluster: &Cluster) -> (Model, Vec<String>) {
    let mut model = Model::default();
    let mut half_dropped = Vec::new();
    let mut client = cluster.connect("postgres");
    let mut ask = |sql: &str| client.query(sql, &[]).unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    for row in ask("SELECT spcname::text FROM pg_tablespace WHERE oid >= 16384 ORDER BY 1") {
        model.tablespaces.insert(row.get(0), TablespaceKind::Folder);
    }
    for row in ask("SELECT gid, database::text FROM pg_prepared_xacts ORDER BY 1") {
        model.prepared.insert(row.get(0), Prepared { database: row.get(1), change: Change::Unknown });
    }
    let databases = ask("SELECT datname::text, spcname::text, datconnlimit FROM pg_database d \
                         JOIN pg_tablespace s ON s.oid = dattablespace WHERE d.oid >= 16384 ORDER BY 1");
    for row in databases {
        let (name, tablespace, limit): (String, String, i32) = (row.get(0), row.get(1), row.get(2));
        if limit == -2 {
            half_dropped.push(name);
            continue;
        }
        let database = observe_database(cluster, &name, tablespace);
        model.databases.insert(name, database);
    }
    (model, half_dropped)
}

fn observe_database(cluster: &Cluster, name: &str, tablespace: String) -> Database {
    let mut client = cluster.connect(name);
    let mut ask =
        |sql: &str| client.query(sql, &[]).unwrap_or_else(|error| panic!("{name}: {sql}: {error:?}"));
    let mut number = |sql: &str| -> i64 { ask(sql)[0].get(0) };
    let large_objects = number("SELECT count(*) FROM pg_largeobject_metadata");
    let subscriptions = number(
        "SELECT count(*) FROM pg_subscription s JOIN pg_database d ON d.oid = subdbid \
                                WHERE datname = current_database()",
    );
    // By a scan of the whole folder's catalogs, and of each relation, by its table and by its index.
    let mut relations = BTreeMap::new();
    for row in ask(RELATIONS) {
        let (relation, kind, persistence): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let kind = match (kind.as_str(), persistence.as_str()) {
            ("m", _) => RelationKind::MaterializedView,
            ("S", _) => RelationKind::Sequence,
            (_, "u") => RelationKind::Unlogged,
            _ => RelationKind::Table,
        };
        let rows = match kind {
            RelationKind::Sequence => {
                ask(&format!("SELECT CASE WHEN is_called THEN last_value ELSE 0 END FROM {relation}"))[0]
                    .get(0)
            }
            RelationKind::MaterializedView => ask(&format!("SELECT count(*) FROM {relation}"))[0].get(0),
            RelationKind::Table | RelationKind::Unlogged => {
                // By the table, and by an index if it has one.
                let count = format!("SELECT count(*) FROM {relation} WHERE a > 0");
                let mut by = |settings: &str| -> i64 {
                    ask(&format!("SET enable_seqscan = {settings}"));
                    ask(&count)[0].get(0)
                };
                let counts = [by("on"), by("off")];
                assert_eq!(counts[0], counts[1], "{name}: {relation}: by the table, by an index");
                counts[0]
            }
        };
        relations.insert(relation, Relation { kind, rows, tablespace: row.get(3) });
    }
    Database { tablespace, relations, large_objects, subscriptions }
}
