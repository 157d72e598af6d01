//! Views for those who read, and a role that may read them and nothing else.
//!
//! Each view carries a comment with the pipeline that made it: so that one pipeline never replaces a view of
//! another or of a person, and takes its own away when they are not asked for any more.

use corrente_crds::tables::{Layout as Shape, Reader, Views};
use tokio_postgres::{Client, Error, GenericClient, Transaction, error::SqlState};

use super::{
    super::{
        session::describe,
        table::{Table, make_schema},
    },
    completeness::{ledger, meters},
};
use crate::sink::columns::quote;

/// The worker's own table of this module.
pub const TABLES: &str = "
    CREATE TABLE IF NOT EXISTS corrente.readers (
        pipeline text NOT NULL,
        role text NOT NULL,
        PRIMARY KEY (pipeline, role)
    );
";

/// The view `latest`: the newest row of each meter, or in a narrow table of each metric. It finds them by the index,
/// one look for each, however many rows there are.
fn latest(table: &Table) -> String {
    let t = table.quoted();
    match table.tables.layout {
        Shape::Wide => format!(
            "WITH RECURSIVE m (meter) AS ( \
                 (SELECT meter FROM {t} ORDER BY meter LIMIT 1) \
                 UNION ALL SELECT (SELECT t.meter FROM {t} t WHERE t.meter > m.meter ORDER BY t.meter LIMIT 1) \
                 FROM m WHERE m.meter IS NOT NULL) \
             SELECT r.* FROM m CROSS JOIN LATERAL \
                 (SELECT * FROM {t} t WHERE t.meter = m.meter ORDER BY t.ts DESC LIMIT 1) r"
        ),
        Shape::Narrow => format!(
            "WITH RECURSIVE m (meter, metric) AS ( \
                 (SELECT meter, metric FROM {t} WHERE metric IS NOT NULL ORDER BY meter, metric LIMIT 1) \
                 UNION ALL SELECT n.meter, n.metric FROM m CROSS JOIN LATERAL \
                     (SELECT t.meter, t.metric FROM {t} t WHERE (t.meter, t.metric) > (m.meter, m.metric) \
                      AND t.metric IS NOT NULL ORDER BY t.meter, t.metric LIMIT 1) n) \
             SELECT r.* FROM m CROSS JOIN LATERAL \
                 (SELECT * FROM {t} t WHERE t.meter = m.meter AND t.metric = m.metric ORDER BY t.ts DESC LIMIT 1) r"
        ),
    }
}

/// The view `completeness`: the ledger, with what is missing. Of the interval that is open, as many slots are due as
/// its part that is over.
fn completeness(table: &Table, interval: i64) -> String {
    let step = format!("INTERVAL '{interval} milliseconds'");
    format!(
        "SELECT bucket, meter, due AS expected, stored, partial, failed, skipped, refused, \
             greatest(due - stored - failed - skipped - refused, 0) AS missing, \
             CASE WHEN due > 0 THEN least(stored::double precision / due, 1) END AS completeness \
         FROM (SELECT *, CASE WHEN bucket + {step} <= now() THEN expected ELSE \
             greatest(floor(expected * extract(epoch FROM now() - bucket) * 1000 / {interval}), 0)::integer END AS due \
             FROM {}) l",
        ledger(table)
    )
}

/// The view `demand_15min`: the tables of windows of 15 minutes that the pipeline derives, as one; `None` while one of
/// them is not made yet.
async fn demand(
    client: &impl GenericClient,
    table: &Table,
    windows: &[String],
) -> Result<Option<String>, Error> {
    let names: Vec<String> = windows.iter().map(|name| table.beside(name)).collect();
    let made = client
        .query_one(
            "SELECT bool_and(to_regclass(name) IS NOT NULL) FROM unnest($1::text[]) AS t (name)",
            &[&names],
        )
        .await?;
    let all = names.iter().map(|name| {
        format!(
            "SELECT meter, metric, window_start, window_end, demand, energy, readings, expected, completeness, quality, \
             revision, updated_at FROM {name}"
        )
    });
    let sql = all.collect::<Vec<String>>().join(" UNION ALL ");
    Ok(made
        .try_get::<_, Option<bool>>(0)?
        .unwrap_or(false)
        .then_some(sql))
}

/// What the views are made from, besides the readings.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    /// The length of the ledger's intervals in milliseconds, where it is kept.
    pub ledger: Option<i64>,
    /// The tables of windows of 15 minutes.
    pub windows: Vec<String>,
}

/// Makes the views that are asked for, and takes away those that are not any more. Gives what a person should know.
pub async fn bring_in_line(
    client: &mut Client,
    table: &Table,
    pipeline: &str,
    sources: &Sources,
) -> Result<Made, Error> {
    let (mut notices, mut whole) = (vec![], true);
    let comment = format!("made by the TelemetryPipeline {pipeline}");
    let mut wanted: Vec<(String, String)> = vec![];
    let transaction = client.transaction().await?;
    table.lock(&transaction).await?;
    if let Some(views) = &table.tables.views {
        make_schema(&transaction, &views.schema).await?;
        let mut all = vec![("latest", latest(table))];
        all.extend(
            sources
                .ledger
                .map(|interval| ("completeness", completeness(table, interval))),
        );
        let demand = demand(&transaction, table, &sources.windows).await?;
        whole = demand.is_some() || sources.windows.is_empty();
        all.extend(demand.map(|sql| ("demand_15min", sql)));
        for (name, sql) in all {
            let found = transaction
                .query_opt(
                    "SELECT c.relkind = 'v' AND coalesce(obj_description(c.oid, 'pg_class'), '') = $3 FROM pg_class c \
                     JOIN pg_namespace n ON n.oid = c.relnamespace WHERE n.nspname = $1 AND c.relname = $2",
                    &[&views.schema, &name, &comment],
                )
                .await?;
            let view = format!("{}.{}", quote(&views.schema), quote(name));
            if let Some(row) = found
                && !row.try_get::<_, bool>(0)?
            {
                notices.push(format!(
                    "the view {view} was not made: there is something of that name already that this pipeline has not \
                     made; give views.schema a schema of its own"
                ));
                continue;
            }
            replace(&transaction, &view, &sql, &comment).await?;
            wanted.push((views.schema.clone(), name.to_owned()));
        }
    }
    let ours = transaction
        .query(
            "SELECT n.nspname::text, c.relname::text FROM pg_description d JOIN pg_class c ON c.oid = d.objoid \
             JOIN pg_namespace n ON n.oid = c.relnamespace \
             WHERE d.classoid = 'pg_class'::regclass AND d.objsubid = 0 AND c.relkind = 'v' AND d.description = $1",
            &[&comment],
        )
        .await?;
    for row in ours {
        let found: (String, String) = (row.try_get(0)?, row.try_get(1)?);
        if !wanted.contains(&found) {
            let view = format!("{}.{}", quote(&found.0), quote(&found.1));
            transaction.batch_execute(&format!("DROP VIEW {view}")).await?;
            tracing::info!(view, "dropped a view that is not asked for any more");
        }
    }
    transaction.commit().await?;
    Ok(Made { notices, whole })
}

/// What came of making the views.
pub struct Made {
    /// What a person should know.
    pub notices: Vec<String>,
    /// Whether all that they are made from was there.
    pub whole: bool,
}

/// New columns are added to a view; one that has lost some is made anew.
async fn replace(transaction: &Transaction<'_>, view: &str, sql: &str, comment: &str) -> Result<(), Error> {
    let make = format!("CREATE OR REPLACE VIEW {view} AS {sql}");
    transaction.batch_execute("SAVEPOINT view").await?;
    if let Err(error) = transaction.batch_execute(&make).await {
        if error.code() != Some(&SqlState::INVALID_TABLE_DEFINITION) {
            return Err(error);
        }
        let anew = format!("ROLLBACK TO SAVEPOINT view; DROP VIEW {view}; {make}");
        transaction.batch_execute(&anew).await?;
    }
    // A comment is made of names that Kubernetes allows: nothing in it needs to be escaped.
    let told = format!(
        "RELEASE SAVEPOINT view; COMMENT ON VIEW {view} IS '{}'",
        comment.replace('\'', "''")
    );
    transaction.batch_execute(&told).await
}

/// Lets the reader read, and those that are not named any more not. Gives what a person should know.
pub async fn grant(
    client: &mut Client,
    table: &Table,
    pipeline: &str,
    windows: &[String],
) -> Result<Vec<String>, Error> {
    let mut notices = vec![];
    let reader = table
        .tables
        .views
        .as_ref()
        .and_then(|views| views.reader.as_ref());
    let name = reader.map_or("", |reader| reader.role.as_str());
    let earlier = client
        .query(
            "SELECT role FROM corrente.readers WHERE pipeline = $1 AND role <> $2",
            &[&pipeline, &name],
        )
        .await?;
    let views = table.tables.views.as_ref();
    for row in earlier {
        let role: String = row.try_get(0)?;
        if role_exists(client, &role).await? {
            for object in objects(client, table, views, windows).await? {
                client
                    .batch_execute(&format!("REVOKE ALL ON {object} FROM {}", quote(&role)))
                    .await?;
            }
        }
        client
            .execute(
                "DELETE FROM corrente.readers WHERE pipeline = $1 AND role = $2",
                &[&pipeline, &role],
            )
            .await?;
        tracing::info!(role, "the role may not read any more");
    }
    let (Some(views), Some(reader)) = (views, reader) else {
        return Ok(notices);
    };
    if !role_exists(client, &reader.role).await?
        && let Some(notice) = make_role(client, reader).await?
    {
        return Ok(vec![notice]);
    }
    let role = quote(&reader.role);
    client
        .execute(
            "INSERT INTO corrente.readers (pipeline, role) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            &[&pipeline, &reader.role],
        )
        .await?;
    let mut sql = String::new();
    for schema in [&table.schema, &views.schema] {
        sql += &format!("GRANT USAGE ON SCHEMA {} TO {role};", quote(schema));
    }
    for object in objects(client, table, Some(views), windows).await? {
        sql += &format!("GRANT SELECT ON {object} TO {role};");
    }
    client.batch_execute(&sql).await?;
    // Who may not grant is warned and not refused.
    let may = client
        .query_one(
            "SELECT has_schema_privilege($1, $2, 'USAGE') AND has_table_privilege($1, $3, 'SELECT')",
            &[
                &reader.role,
                &views.schema,
                &format!("{}.latest", quote(&views.schema)),
            ],
        )
        .await;
    if !may.is_ok_and(|row| row.try_get(0).unwrap_or(false)) {
        notices.push(format!(
            "the role {} may not read the views: the worker's database user does not own them, or the schema {}; let \
             their owner run GRANT USAGE ON SCHEMA and GRANT SELECT",
            reader.role, views.schema
        ));
    }
    Ok(notices)
}

async fn role_exists(client: &impl GenericClient, role: &str) -> Result<bool, Error> {
    let row = client
        .query_one(
            "SELECT EXISTS (SELECT FROM pg_roles WHERE rolname = $1)",
            &[&role],
        )
        .await?;
    row.try_get(0)
}

/// Makes the role; a sentence where that is not to be, or cannot be.
async fn make_role(client: &impl GenericClient, reader: &Reader) -> Result<Option<String>, Error> {
    let role = quote(&reader.role);
    if !reader.create {
        return Ok(Some(format!(
            "the database has no role {0}: run CREATE ROLE {role}, or write views.reader.create: true",
            reader.role
        )));
    }
    match client.batch_execute(&format!("CREATE ROLE {role} NOLOGIN")).await {
        Ok(()) => Ok(None),
        Err(error) if error.code() == Some(&SqlState::INSUFFICIENT_PRIVILEGE) => Ok(Some(format!(
            "the role {} cannot be made, because the worker's database user lacks CREATEROLE: let a superuser run \
             CREATE ROLE {role}, or ALTER ROLE ... CREATEROLE ({})",
            reader.role,
            describe(&error)
        ))),
        // Another worker was first.
        Err(error) if error.code() == Some(&SqlState::DUPLICATE_OBJECT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// What a reader may read of what there is: the table, its roll-ups and windows, the ledger, and the views.
async fn objects(
    client: &impl GenericClient,
    table: &Table,
    views: Option<&Views>,
    windows: &[String],
) -> Result<Vec<String>, Error> {
    let mut names = vec![table.quoted(), ledger(table), meters(table)];
    names.extend(windows.iter().map(|name| table.beside(name)));
    names.extend(
        table
            .tables
            .rollups
            .iter()
            .map(|rollup| table.beside(&rollup.table)),
    );
    if let Some(views) = views {
        names.extend(
            ["latest", "completeness", "demand_15min"].map(|view| format!("{}.{view}", quote(&views.schema))),
        );
    }
    let rows = client
        .query(
            "SELECT name FROM unnest($1::text[]) AS t (name) WHERE to_regclass(name) IS NOT NULL",
            &[&names],
        )
        .await?;
    rows.iter().map(|row| row.try_get(0)).collect()
}

/// Brings the readers of a pipeline's old name under its new one, so that those it does not name any more lose their rights.
pub async fn rename(client: &Client, old: &str, new: &str) -> Result<(), Error> {
    let sql = "UPDATE corrente.readers o SET pipeline = $2 WHERE pipeline = $1 AND NOT EXISTS \
               (SELECT FROM corrente.readers n WHERE n.pipeline = $2 AND n.role = o.role)";
    client.execute(sql, &[&old, &new]).await.map(|_| ())
}
