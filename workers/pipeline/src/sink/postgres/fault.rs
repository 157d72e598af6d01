//! What the database's errors mean: what sort of fault each is, and the sentence for people.
//!
//! The codes are those of PostgreSQL's documentation, Appendix A. Whatever it is, the batch is tried again; see
//! [`crate::fault`] for how soon.

use std::error::Error as _;

use tokio_postgres::Error;

use super::{address::Address, session::describe};
use crate::{
    fault::{Fault, FaultKind},
    sink::SinkError,
};

/// Makes an error of the database one that is tried again. `what` completes "failed to".
pub fn failed(what: &str) -> impl Fn(Error) -> SinkError {
    move |error| SinkError::Fault(explain(what, &error))
}

/// The fault behind a connect that did not come about.
pub fn of_connect(error: &Error, address: &Address) -> SinkError {
    let what = "connect to the database";
    let unreachable = |reason: String| SinkError::unreachable(format!("failed to {what} in TLS: {reason}"));
    if let Some(reason) = address.trust.explain(error) {
        return unreachable(reason);
    }
    // The client's own words, for which it has no type.
    if error
        .source()
        .is_some_and(|source| source.to_string() == "server does not support TLS")
    {
        return unreachable(
            "the server has none: turn ssl on there, or write sslMode: disable or prefer to do without"
                .to_owned(),
        );
    }
    let mut fault = explain(what, error);
    if let Some(db) = error.as_db_error().filter(|db| db.code().code() == "28000") {
        fault.reason.push_str(of_encryption(db.message()));
    }
    SinkError::Fault(fault)
}

/// What to change where the server lets a user in with TLS, without it or with a certificate only. Its sentence says
/// which, where it speaks English.
fn of_encryption(message: &str) -> &'static str {
    if message.contains("no encryption") || message.contains("SSL off") {
        ". It may let this user in in TLS only: write sslMode: verify-full, with the server's authorities in caSecret"
    } else if message.contains("SSL encryption") || message.contains("SSL on") {
        ". It may let this user in without TLS only: add a line of hostssl to its pg_hba.conf, or write sslMode: disable"
    } else if message.contains("certificate") {
        ". It wants to be shown a certificate of this user: name its Secret in clientCertificateSecret"
    } else {
        ""
    }
}

/// The fault behind an error. `what` completes "failed to".
pub fn explain(what: &str, error: &Error) -> Fault {
    let code = error.code().map(|code| code.code());
    let (kind, hint) = meaning(code);
    Fault {
        kind,
        reason: format!("failed to {what}: {}{hint}", describe(error)),
    }
}

/// What sort of fault a code is, and what a person should know of it. Without a code the connection was lost, or never
/// came about.
fn meaning(code: Option<&str>) -> (FaultKind, &'static str) {
    let Some(code) = code else {
        return (
            FaultKind::Unreachable,
            ". Nothing is lost: the records wait in the topic until the database can be reached",
        );
    };
    match code {
        "53300" => (
            FaultKind::TooManyConnections,
            ". The database has no connection to spare for this worker: end some, or raise max_connections or the limit of \
             the role or the database",
        ),
        "53100" => (
            FaultKind::DiskFull,
            ". The database's disk is full: free or add space there. Nothing is lost: the records wait in the topic",
        ),
        "25006" => (
            FaultKind::ReadOnly,
            ". The database takes no writes: it is a standby, or default_transaction_read_only is set. If another server \
             has become the primary, name that one in the URL",
        ),
        "40P01" => (
            FaultKind::Conflict,
            ". Another transaction wanted the same rows in another order; this one begins anew",
        ),
        "40001" => (
            FaultKind::Conflict,
            ". Another transaction changed the same rows; this one begins anew",
        ),
        "55P03" => (
            FaultKind::Other,
            ". Somebody holds what is needed: pg_stat_activity shows who",
        ),
        // What the server says while it starts, stops, or drops a connection on purpose.
        "57P01" | "57P02" | "57P03" | "57P05" | "25P03" => (
            FaultKind::Unreachable,
            ". Nothing is lost: the records wait in the topic until the database takes them",
        ),
        _ if code.starts_with("08") => (
            FaultKind::Unreachable,
            ". Nothing is lost: the records wait in the topic until the database can be reached",
        ),
        _ if code.starts_with("28") => (
            FaultKind::Other,
            ". The database does not let this user in: correct the URL in the Secret, or the user's password or rights",
        ),
        "42501" => (FaultKind::Other, ". The user in the URL lacks a right: grant it"),
        _ => (FaultKind::Other, ""),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_fault_that_passes_has_its_kind_and_a_sentence() {
        for (code, kind, says) in [
            (None, FaultKind::Unreachable, "wait in the topic"),
            (Some("08006"), FaultKind::Unreachable, "can be reached"),
            (Some("57P03"), FaultKind::Unreachable, "wait in the topic"),
            (Some("53300"), FaultKind::TooManyConnections, "max_connections"),
            (Some("53100"), FaultKind::DiskFull, "disk is full"),
            (Some("25006"), FaultKind::ReadOnly, "standby"),
            (Some("40P01"), FaultKind::Conflict, "begins anew"),
            (Some("40001"), FaultKind::Conflict, "begins anew"),
            (Some("55P03"), FaultKind::Other, "pg_stat_activity"),
            (Some("28P01"), FaultKind::Other, "password"),
        ] {
            let (found, hint) = meaning(code);
            assert!(found == kind && hint.contains(says), "{code:?}: {found:?}{hint}");
        }
        assert_eq!(meaning(Some("42P01")), (FaultKind::Other, ""));
    }

    #[test]
    fn who_is_not_let_in_is_told_how_to_come() {
        let to = "no pg_hba.conf entry for host \"10.0.0.1\", user \"u\", database \"d\"";
        for (message, says) in [
            (format!("{to}, no encryption"), "in TLS only"),
            (format!("{to}, SSL off"), "in TLS only"),
            (format!("{to}, SSL encryption"), "without TLS only"),
            (
                "connection requires a valid client certificate".to_owned(),
                "clientCertificateSecret",
            ),
        ] {
            assert!(of_encryption(&message).contains(says), "{message}");
        }
        assert_eq!(of_encryption("role \"u\" is not permitted to log in"), "");
    }
}
