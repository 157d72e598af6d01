//! SIGTERM and SIGINT as one token.

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A token that is cancelled when the process is asked to end, by SIGTERM or SIGINT. What still runs
/// then should flush and leave within five seconds.
///
/// # Errors
/// Where the handlers cannot be installed.
pub fn token() -> std::io::Result<CancellationToken> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "asked to end");
        cancelled.cancel();
    });
    Ok(token)
}
