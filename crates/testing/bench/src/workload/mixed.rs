//! Orders: secondary indexes, inserts, updates of indexed columns, range reads, deletes, and transactions that stay
//! open for a while.

use std::fs;
use std::path::PathBuf;

use anyhow::Context;

use super::{end_round, load, measure, rotated, start, warm_up};
use crate::Bench;
use crate::durability::Appended;
use crate::model::System;
use crate::pgbench::Script;

const NAME: &str = "mixed";
const CLIENTS: u32 = 16;
/// Customers and items for each unit of scale; there are as many orders at the start as customers.
const CUSTOMERS_PER_SCALE: u32 = 2_000;
/// Scripts with their weights, out of 200: the transactions that sleep stay above the 99th percentile. Every one of
/// them that writes also adds one row to `done`.
const SCRIPTS: [(&str, u32, &str); 5] = [
    (
        "new-order",
        90,
        "BEGIN;
INSERT INTO orders (customer, status, placed, note) VALUES (:customer, 0, now(), repeat('n', :customer % 60))
    RETURNING id \\gset order_
INSERT INTO lines SELECT :order_id, line, (:item + line) % :items + 1, line FROM generate_series(1, 4) AS line;
UPDATE items SET stock = stock - 1, sold = now() WHERE id = :item;
INSERT INTO done DEFAULT VALUES;
COMMIT;
",
    ),
    (
        "ship-order",
        50,
        "BEGIN;
UPDATE orders SET status = status + 1, placed = now() WHERE id = :order;
UPDATE customers SET balance = balance + 1, city = city + 1 WHERE id = :customer;
INSERT INTO done DEFAULT VALUES;
COMMIT;
",
    ),
    (
        "read",
        40,
        "SELECT count(*), max(placed) FROM orders WHERE customer BETWEEN :customer AND :customer + 5;
SELECT id, name FROM customers WHERE city = :order % 500 ORDER BY balance LIMIT 10;
",
    ),
    (
        "cancel-order",
        19,
        "BEGIN;
DELETE FROM lines WHERE order_id = :order;
DELETE FROM orders WHERE id = :order;
INSERT INTO done DEFAULT VALUES;
COMMIT;
",
    ),
    (
        "long-transaction",
        1,
        "BEGIN;
SELECT sum(balance) FROM customers WHERE city = :customer % 500;
INSERT INTO orders (customer, status, placed, note) VALUES (:customer, 9, now(), 'slow');
\\sleep 500 ms
UPDATE orders SET note = 'slower' WHERE customer = :customer AND status = 9;
INSERT INTO done DEFAULT VALUES;
COMMIT;
",
    ),
];

fn schema(customers: u32) -> String {
    format!(
        "CREATE TABLE customers (id int PRIMARY KEY, name text, city int, balance bigint);
         CREATE TABLE items (id int PRIMARY KEY, stock int, sold timestamptz);
         CREATE TABLE orders (id bigserial PRIMARY KEY, customer int, status int, placed timestamptz, note text);
         CREATE TABLE lines (order_id bigint, line int, item int, quantity int, PRIMARY KEY (order_id, line));
         CREATE TABLE done (at timestamptz DEFAULT now());
         INSERT INTO customers SELECT n, md5(n::text), n % 500, 0 FROM generate_series(1, {customers}) AS n;
         INSERT INTO items SELECT n, 1000000, NULL FROM generate_series(1, {customers}) AS n;
         INSERT INTO orders (customer, status, placed, note)
             SELECT n, n % 5, now(), repeat('n', n % 60) FROM generate_series(1, {customers}) AS n;
         INSERT INTO lines SELECT n, line, n, line FROM generate_series(1, {customers}) AS n, generate_series(1, 4) AS line;
         CREATE INDEX ON customers (city, balance);
         CREATE INDEX ON customers (name);
         CREATE INDEX ON orders (customer, placed);
         CREATE INDEX ON orders (status);
         CREATE INDEX ON lines (item);"
    )
}

fn write_scripts(bench: &Bench, customers: u32) -> anyhow::Result<Vec<(PathBuf, u32)>> {
    let variables = format!(
        "\\set customer random(1, {customers})\n\\set item random(1, {customers})\n\\set order random(1, {customers})\n\
         \\set items {customers}\n"
    );
    SCRIPTS
        .iter()
        .map(|(name, weight, text)| {
            let path = bench.environment.folder.join(format!("{name}.sql"));
            fs::write(&path, format!("{variables}{text}")).context("cannot write a script")?;
            Ok((path, *weight))
        })
        .collect()
}

pub(super) fn run(bench: &mut Bench) -> anyhow::Result<()> {
    let systems = [System::Stock, System::Replicated, System::Ceiling, System::Borealis];
    let servers = start(bench, NAME, &systems)?;
    let customers = bench.plan.scale * CUSTOMERS_PER_SCALE;
    let script = Script::Files(write_scripts(bench, customers)?);
    for server in &servers {
        let mut connection = server.connect()?;
        connection.query(&schema(customers)).context("the tables cannot be made")?;
        connection.query("VACUUM ANALYZE")?;
        connection.query("CHECKPOINT")?;
        warm_up(bench, server, script.clone())?;
    }
    for round in 1..=bench.plan.rounds {
        for place in rotated(servers.len(), round) {
            let load = load(bench, &servers[place], CLIENTS, script.clone());
            measure(bench, &servers[place], &load, (NAME, "orders, 16 clients", round))?;
        }
        for server in &servers {
            // Readers add no row, so the table itself says how many writers were done before the crash.
            let rows = server.connect()?.number("SELECT count(*) FROM done")?;
            let appended = Appended { table: "done", acknowledged: rows as u64 };
            if !end_round(bench, server, (NAME, round), Some(appended))? {
                return Ok(());
            }
            if server.system() == System::Borealis && round < bench.plan.rounds {
                server.warm(&["customers", "items", "orders", "lines", "orders_pkey", "lines_pkey"])?;
                warm_up(bench, server, script.clone())?;
            }
        }
    }
    Ok(())
}
