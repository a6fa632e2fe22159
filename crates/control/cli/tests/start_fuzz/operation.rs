//! What the fuzzer does to a cluster: one statement, or one transaction, each, and what it comes to.

use crate::model::{Change, Database, Model, Prepared, Relation, RelationKind, TablespaceKind};
use crate::random::Random;

/// A statement, or a transaction, and what it changes if it is committed.
#[derive(Clone, Debug)]
pub struct Operation {
    /// For the counts.
    pub kind: &'static str,
    /// The database to connect to.
    pub database: String,
    /// Each in a message of its own; only the last one changes anything that the model has.
    pub sql: Vec<String>,
    pub after: Model,
}

/// Names are never used twice, so that what was left behind cannot pass for what was made.
fn fresh(random: &mut Random, letter: char) -> String {
    format!("{letter}{}", random.next() % 1_000_000_000)
}

/// A tablespace, or none: `TABLESPACE x` and the name that the catalog will have.
fn somewhere(model: &Model, random: &mut Random) -> (String, String) {
    match random.pick(model.tablespaces.keys()) {
        Some(name) if random.chance(50) => (format!(" TABLESPACE {name}"), name.clone()),
        _ => (String::new(), String::new()),
    }
}

/// The next operation. `folder` is where the folders of tablespaces may be made.
pub fn next(model: &Model, random: &mut Random, mut folder: impl FnMut() -> String) -> Operation {
    loop {
        let found = match random.below(100) {
            0..9 => create_database(model, random),
            9..17 => drop_database(model, random),
            17..23 => move_database(model, random),
            23..25 => rename_database(model, random),
            25..30 => Some(create_tablespace(model, random, &mut folder)),
            30..34 => drop_tablespace(model, random),
            34..60 => in_database(model, random),
            60..76 => on_table(model, random),
            76..86 => prepared(model, random),
            _ => maintenance(model, random),
        };
        if let Some(operation) = found {
            return operation;
        }
    }
}

fn operation(kind: &'static str, database: &str, sql: impl Into<String>, after: Model) -> Operation {
    Operation { kind, database: database.to_owned(), sql: vec![sql.into()], after }
}

fn create_database(model: &Model, random: &mut Random) -> Option<Operation> {
    if model.databases.len() >= 4 {
        return None;
    }
    let name = fresh(random, 'd');
    let template = random.pick(model.databases.keys()).filter(|_| random.chance(75)).cloned();
    let (kind, strategy) = match random.chance(50) {
        true => ("create database, file_copy", "file_copy"),
        false => ("create database, wal_log", "wal_log"),
    };
    let (clause, tablespace) = somewhere(model, random);
    let base = if random.chance(80) { "template1" } else { "template0" };
    let from = template.as_deref().unwrap_or(base);
    let sql = format!("CREATE DATABASE {name} TEMPLATE {from} STRATEGY {strategy}{clause}");
    let mut after = model.clone();
    let mut database = template.map_or_else(Database::default, |template| model.databases[&template].clone());
    database.subscriptions = 0;
    if !tablespace.is_empty() {
        database.tablespace = tablespace;
    } else if database.tablespace.is_empty() {
        database.tablespace = "pg_default".to_owned();
    }
    after.databases.insert(name, database);
    Some(operation(kind, "postgres", sql, after))
}

fn drop_database(model: &Model, random: &mut Random) -> Option<Operation> {
    let name = random.pick(model.databases.keys()).filter(|_| model.databases.len() > 1)?;
    let mut after = model.clone();
    after.databases.remove(name);
    Some(operation("drop database", "postgres", format!("DROP DATABASE {name} WITH (FORCE)"), after))
}

fn move_database(model: &Model, random: &mut Random) -> Option<Operation> {
    let name = random.pick(model.databases.keys())?;
    let to = match random.pick(model.tablespaces.keys()) {
        Some(to) if random.chance(60) => to.clone(),
        _ => "pg_default".to_owned(),
    };
    let sql = format!("ALTER DATABASE {name} SET TABLESPACE {to}");
    let mut after = model.clone();
    after.databases.get_mut(name)?.tablespace = to;
    Some(operation("alter database, set tablespace", "postgres", sql, after))
}

fn rename_database(model: &Model, random: &mut Random) -> Option<Operation> {
    let (name, to) = (random.pick(model.databases.keys())?, fresh(random, 'd'));
    let mut after = model.clone();
    let database = after.databases.remove(name)?;
    after.databases.insert(to.clone(), database);
    Some(operation(
        "alter database, rename",
        "postgres",
        format!("ALTER DATABASE {name} RENAME TO {to}"),
        after,
    ))
}

fn create_tablespace(model: &Model, random: &mut Random, folder: &mut impl FnMut() -> String) -> Operation {
    let name = fresh(random, 's');
    let mut after = model.clone();
    if random.chance(30) {
        after.tablespaces.insert(name.clone(), TablespaceKind::InPlace);
        let mut operation = operation("create tablespace, in place", "postgres", "", after);
        operation.sql = vec![
            "SET allow_in_place_tablespaces = on".to_owned(),
            format!("CREATE TABLESPACE {name} LOCATION ''"),
        ];
        return operation;
    }
    after.tablespaces.insert(name.clone(), TablespaceKind::Folder);
    let sql = format!("CREATE TABLESPACE {name} LOCATION '{}'", folder());
    operation("create tablespace", "postgres", sql, after)
}

fn drop_tablespace(model: &Model, random: &mut Random) -> Option<Operation> {
    let name = random.pick(model.tablespaces.keys())?;
    let mut after = model.clone();
    after.tablespaces.remove(name);
    // Refused while anything is in it.
    Some(operation("drop tablespace", "postgres", format!("DROP TABLESPACE {name}"), after))
}

/// Something new in a database.
fn in_database(model: &Model, random: &mut Random) -> Option<Operation> {
    let name = random.pick(model.databases.keys())?;
    let mut after = model.clone();
    let database = after.databases.get_mut(name)?;
    let full = database.relations.len() >= 7;
    let new = fresh(random, 'r');
    let (clause, tablespace) = somewhere(model, random);
    // A relation in the database's own tablespace has none of its own.
    let tablespace = if tablespace == database.tablespace { String::new() } else { tablespace };
    let mut add = |kind, rows| {
        let relation = Relation { kind, rows, tablespace: tablespace.clone() };
        database.relations.insert(new.clone(), relation);
    };
    let (kind, sql) = match random.below(10) {
        0..4 if !full => {
            let rows = i64::from(random.below(300));
            let unlogged = random.chance(25);
            let (kind, word) =
                if unlogged { ("create table, unlogged", "UNLOGGED ") } else { ("create table", "") };
            add(if unlogged { RelationKind::Unlogged } else { RelationKind::Table }, rows);
            let index =
                if random.chance(50) { format!("CREATE INDEX {new}_a ON {new} (a);") } else { String::new() };
            let sql = format!(
                "BEGIN; CREATE {word}TABLE {new} (a int, b text){clause}; {index} \
                 INSERT INTO {new} SELECT n, repeat('b', n % 200) FROM generate_series(1, {rows}) n; COMMIT"
            );
            (kind, sql)
        }
        4 if !full => {
            add(RelationKind::MaterializedView, 50);
            let sql =
                format!("CREATE MATERIALIZED VIEW {new}{clause} AS SELECT n FROM generate_series(1, 50) n");
            ("create materialized view", sql)
        }
        5 if !full => {
            let relation = Relation { kind: RelationKind::Sequence, rows: 0, tablespace: String::new() };
            database.relations.insert(new.clone(), relation);
            ("create sequence", format!("CREATE SEQUENCE {new}"))
        }
        6 => {
            database.large_objects += 1;
            ("large object", "SELECT lo_from_bytea(0, decode(repeat('ab', 5000), 'hex'))".to_owned())
        }
        7 => (
            "temporary table",
            "CREATE TEMP TABLE temporary AS SELECT generate_series(1, 1000) AS a".to_owned(),
        ),
        8 => {
            let sql = format!(
                "BEGIN; CREATE TABLE {new} (a int){clause}; INSERT INTO {new} VALUES (1); SAVEPOINT s; \
                 CREATE MATERIALIZED VIEW {new}m AS SELECT * FROM {new}; ROLLBACK TO s; ROLLBACK"
            );
            ("rolled back", sql)
        }
        9 => return Some(subscription(name, random, after)),
        _ => return None,
    };
    Some(operation(kind, name, sql, after))
}

fn subscription(name: &str, random: &mut Random, mut after: Model) -> Operation {
    let database = after.databases.get_mut(name).expect("it was picked");
    if database.subscriptions > 0 {
        database.subscriptions = 0;
        let sql = "DO $$ DECLARE s name; BEGIN FOR s IN SELECT subname FROM pg_subscription JOIN pg_database d \
                   ON d.oid = subdbid WHERE datname = current_database() LOOP EXECUTE 'DROP SUBSCRIPTION ' || s; \
                   END LOOP; END $$";
        return operation("drop subscription", name, sql, after);
    }
    database.subscriptions = 1;
    let new = fresh(random, 'u');
    let sql = format!(
        "CREATE SUBSCRIPTION {new} CONNECTION 'dbname=nowhere' PUBLICATION p \
         WITH (connect = false, slot_name = NONE)"
    );
    operation("create subscription", name, sql, after)
}

/// Something with a relation that is there.
fn on_table(model: &Model, random: &mut Random) -> Option<Operation> {
    let name = random.pick(model.databases.keys())?;
    let mut after = model.clone();
    let database = after.databases.get_mut(name)?;
    let own = database.tablespace.clone();
    let (table, relation) = random.pick(&mut database.relations)?;
    let table = table.clone();
    let is_table = matches!(relation.kind, RelationKind::Table | RelationKind::Unlogged);
    let (kind, sql) = match (relation.kind, random.below(12)) {
        (RelationKind::Sequence, _) => {
            relation.rows += 3;
            ("nextval", format!("SELECT nextval('{table}') FROM generate_series(1, 3)"))
        }
        (RelationKind::MaterializedView, 0..4) => {
            ("refresh materialized view", format!("REFRESH MATERIALIZED VIEW {table}"))
        }
        (_, 0..4) => {
            relation.rows += 100;
            ("insert", format!("INSERT INTO {table} SELECT n, 'x' FROM generate_series(1, 100) n"))
        }
        (_, 4) if is_table => {
            relation.rows = 0;
            ("truncate", format!("TRUNCATE {table}"))
        }
        (_, 5) if is_table => {
            let sql = format!(
                "ALTER TABLE {table} ALTER a TYPE bigint, ADD c{} int DEFAULT 7",
                random.below(1 << 30)
            );
            ("alter table, rewritten", sql)
        }
        (_, 6) => ("vacuum full", format!("VACUUM FULL {table}")),
        (_, 7) => {
            let to = random.pick(model.tablespaces.keys()).filter(|_| random.chance(70)).cloned();
            let to = to.unwrap_or_else(|| own.clone());
            relation.tablespace = if to == own { String::new() } else { to.clone() };
            let what = if is_table { "TABLE" } else { "MATERIALIZED VIEW" };
            ("set tablespace of a relation", format!("ALTER {what} {table} SET TABLESPACE {to}"))
        }
        (kind, 8) => {
            let new = fresh(random, 'r');
            let relation = database.relations.remove(&table)?;
            database.relations.insert(new.clone(), relation);
            let what = if kind == RelationKind::MaterializedView { "MATERIALIZED VIEW" } else { "TABLE" };
            ("rename a relation", format!("ALTER {what} {table} RENAME TO {new}"))
        }
        (kind @ (RelationKind::Table | RelationKind::Unlogged), 9) => {
            let (to, word) = match kind {
                RelationKind::Table => (RelationKind::Unlogged, "UNLOGGED"),
                _ => (RelationKind::Table, "LOGGED"),
            };
            relation.kind = to;
            ("alter table, logged or not", format!("ALTER TABLE {table} SET {word}"))
        }
        (_, 10) if is_table => {
            let sql = format!(
                "BEGIN; SELECT count(*) FROM (SELECT 1 FROM {table} FOR KEY SHARE) locked; SAVEPOINT s; \
                 UPDATE {table} SET b = 'multi' WHERE a < 20; COMMIT"
            );
            ("multixacts", sql)
        }
        (kind, _) => {
            database.relations.remove(&table);
            let what = if kind == RelationKind::MaterializedView { "MATERIALIZED VIEW" } else { "TABLE" };
            ("drop a relation", format!("DROP {what} {table}"))
        }
    };
    Some(operation(kind, name, sql, after))
}

fn prepared(model: &Model, random: &mut Random) -> Option<Operation> {
    let mut after = model.clone();
    if random.chance(60)
        && let Some(gid) = random.pick(model.prepared.keys())
    {
        let prepared = after.prepared.remove(gid)?;
        if random.chance(30) {
            let sql = format!("ROLLBACK PREPARED '{gid}'");
            return Some(operation("rollback prepared", &prepared.database, sql, after));
        }
        let relations = &mut after.databases.get_mut(&prepared.database)?.relations;
        match prepared.change {
            Change::Insert(table, rows) => relations.get_mut(&table)?.rows += rows,
            Change::Create(table, relation) => drop(relations.insert(table, relation)),
            Change::Unknown => {}
        }
        let sql = format!("COMMIT PREPARED '{gid}'");
        return Some(operation("commit prepared", &prepared.database, sql, after));
    }
    if model.prepared.len() >= 3 {
        return None;
    }
    let name = random.pick(model.databases.keys())?;
    let gid = fresh(random, 'g');
    let rows = 1 + i64::from(random.below(2000));
    let relations = &model.databases[name].relations;
    if random.chance(30) && relations.len() < 7 {
        let new = fresh(random, 'r');
        let (clause, tablespace) = somewhere(model, random);
        let own = tablespace == model.databases[name].tablespace;
        let tablespace = if own { String::new() } else { tablespace };
        let sql = format!(
            "BEGIN; CREATE TABLE {new} (a int, b text){clause}; CREATE INDEX {new}_a ON {new} (a); INSERT INTO {new} \
             SELECT n, 'p' FROM generate_series(1, {rows}) n; PREPARE TRANSACTION '{gid}'"
        );
        let change = Change::Create(new, Relation { kind: RelationKind::Table, rows, tablespace });
        after.prepared.insert(gid, Prepared { database: name.clone(), change });
        return Some(operation("prepare transaction, with a new table", name, sql, after));
    }
    let tables: Vec<&String> =
        relations.iter().filter(|(_, it)| it.kind == RelationKind::Table).map(|(table, _)| table).collect();
    let table = random.pick(tables)?;
    let sql = format!(
        "BEGIN; INSERT INTO {table} SELECT n, 'p' FROM generate_series(1, {rows}) n; PREPARE TRANSACTION '{gid}'"
    );
    let change = Change::Insert(table.clone(), rows);
    after.prepared.insert(gid, Prepared { database: name.clone(), change });
    Some(operation("prepare transaction", name, sql, after))
}

/// What changes files and nothing that a query shows.
fn maintenance(model: &Model, random: &mut Random) -> Option<Operation> {
    let name = random.pick(model.databases.keys())?;
    let slot = fresh(random, 'l');
    let (kind, sql) = match random.below(12) {
        0 => ("vacuum full, mapped catalog", "VACUUM FULL pg_class".to_owned()),
        1 => ("vacuum full, shared catalog", "VACUUM FULL pg_database".to_owned()),
        2 => ("vacuum full, shared catalog", "VACUUM FULL pg_tablespace".to_owned()),
        3 => ("cluster, mapped catalog", "CLUSTER pg_class USING pg_class_oid_index".to_owned()),
        4 => ("reindex system", format!("REINDEX SYSTEM {name}")),
        5 => ("checkpoint", "CHECKPOINT".to_owned()),
        6 => ("vacuum freeze", "VACUUM (FREEZE, ANALYZE) pg_attribute".to_owned()),
        7 => ("alter system", format!("ALTER SYSTEM SET work_mem = '{}kB'", 64 + random.below(9000))),
        8 => ("alter database, set", format!("ALTER DATABASE {name} SET work_mem = '5MB'")),
        9 => ("replication slot", format!("SELECT pg_create_physical_replication_slot('{slot}', true)")),
        10 => {
            // Transactions by the thousand, in one of many parts.
            let sql = "DO $$ BEGIN FOR i IN 1..2000 LOOP BEGIN PERFORM pg_current_xact_id(); \
                       EXCEPTION WHEN others THEN NULL; END; END LOOP; END $$";
            ("transaction ids", sql.to_owned())
        }
        _ => ("reindex, mapped catalog", "REINDEX TABLE pg_class".to_owned()),
    };
    Some(operation(kind, name, sql, model.clone()))
}
