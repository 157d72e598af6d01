//! One connection: requests in, answers out, and what faults want done on the way. The rim: it plays what
//! [`crate::faults::script`] has written, and decides nothing.
//!
//! Requests are served one after the other. What is written is gathered until there is nothing more to serve,
//! or a fault wants a pause. During a pause the connection is still listened to, so that one whose other side
//! has gone away ends at once, as it does with a device.

use std::{io, sync::Arc};

use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    time::{Instant, sleep_until},
};

use crate::{
    faults::script::Step,
    hub::{Hub, Place},
    line::Done,
};

/// The most bytes of requests that wait to be served: beyond it the sender waits.
const MOST_WAITING: usize = 64 * 1024;

/// How a connection is to be ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// By closing it, if it is not closed already.
    Close,
    /// By a reset.
    Reset,
}

/// Serves a connection until it ends.
pub async fn serve<S: AsyncRead + AsyncWrite + Unpin>(stream: &mut S, place: Place, hub: &Arc<Hub>) -> End {
    let mut connection = Connection {
        stream,
        place,
        input: Vec::new(),
        output: Vec::new(),
    };
    match connection.run(hub).await {
        Ok(end) => end,
        // The other side is gone: that is no fault of this one.
        Err(_) => End::Close,
    }
}

struct Connection<'a, S> {
    stream: &'a mut S,
    place: Place,
    /// What came and is not served yet.
    input: Vec<u8>,
    /// What is served and not written yet.
    output: Vec<u8>,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Connection<'_, S> {
    async fn run(&mut self, hub: &Arc<Hub>) -> io::Result<End> {
        let (line, number) = (hub.line(), self.place.number);
        loop {
            let mut taken = 0;
            loop {
                let rest = self.input.get(taken..).unwrap_or_default();
                let Ok((length, asked)) = line.framing().take(rest) else {
                    self.flush().await?;
                    return Ok(End::Close);
                };
                taken += length;
                let Some(asked) = asked else {
                    if length == 0 {
                        break;
                    }
                    continue;
                };
                match line.serve(hub.now(), number, &asked, &mut self.output) {
                    Done::Written => {}
                    Done::Steps(steps, later) => {
                        // Before a pause, which reads more.
                        self.input.drain(..taken);
                        taken = 0;
                        if let Some(later) = later {
                            hub.send_later(number, later);
                        }
                        for step in steps {
                            if let Some(end) = self.play(step).await? {
                                return Ok(end);
                            }
                        }
                    }
                }
            }
            self.input.drain(..taken);
            self.flush().await?;
            if !self.listen(None).await? {
                return Ok(End::Close);
            }
        }
    }

    async fn play(&mut self, step: Step) -> io::Result<Option<End>> {
        match step {
            Step::Send(bytes) => self.output.extend(bytes),
            Step::Wait(pause) => {
                self.flush().await?;
                let until = Instant::now() + pause;
                while Instant::now() < until {
                    if !self.listen(Some(until)).await? {
                        return Ok(Some(End::Close));
                    }
                }
            }
            Step::Close => {
                self.flush().await?;
                return Ok(Some(End::Close));
            }
            Step::Reset => {
                self.flush().await?;
                return Ok(Some(End::Reset));
            }
        }
        Ok(None)
    }

    /// Waits until something came, or the time has come. `false` at the end of the connection.
    async fn listen(&mut self, until: Option<Instant>) -> io::Result<bool> {
        let time = async {
            match until {
                Some(until) => sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            read = self.stream.read_buf(&mut self.input), if self.input.len() < MOST_WAITING => Ok(read? > 0),
            Some(late) = self.place.mail.recv() => {
                self.stream.write_all(&late).await?;
                Ok(true)
            }
            () = time => Ok(true),
        }
    }

    async fn flush(&mut self) -> io::Result<()> {
        if !self.output.is_empty() {
            self.stream.write_all(&self.output).await?;
            self.output.clear();
        }
        Ok(())
    }
}

/// Takes what comes and serves nothing, until the other side gives up.
pub async fn ignore<S: AsyncRead + Unpin>(stream: &mut S) {
    let mut buffer = [0; 256];
    while stream.read(&mut buffer).await.is_ok_and(|read| read > 0) {}
}
