//! A server as a process of the test's own, on a port and in a folder that nothing else has. It can be killed and
//! started again on the same data, and goes with the test.

use std::{
    fs::{self, File},
    net::{TcpListener, TcpStream},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use tempfile::TempDir;

use crate::support::wait;

/// How a server is started, in a folder and on a port.
type Start = Box<dyn Fn(&Path, u16) -> Command + Send + Sync>;

pub struct Server {
    pub port: u16,
    folder: TempDir,
    start: Start,
    child: Option<Child>,
}

/// A port that is free now. Another process may take it before the server does, which then does not come up.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().port()
}

/// Where the servers that are no Debian packages are installed.
pub fn cache() -> PathBuf {
    std::env::var_os("CORRENTE_CACHE").map_or_else(
        || PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/corrente"),
        PathBuf::from,
    )
}

impl Server {
    /// Starts what `start` says for a folder and a port, and waits until the port is open.
    pub async fn start(start: impl Fn(&Path, u16) -> Command + Send + Sync + 'static) -> Self {
        let mut server = Self {
            port: free_port(),
            folder: tempfile::tempdir().unwrap(),
            start: Box::new(start),
            child: None,
        };
        server.again().await;
        server
    }

    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    pub fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Ends it as a power cut would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            // With what it started itself.
            let group = format!("-{}", child.id());
            Command::new("kill").args(["-9", "--", &group]).status().unwrap();
            child.wait().unwrap();
        }
    }

    /// Starts it on the data that it left.
    pub async fn again(&mut self) {
        let log = File::create(self.folder().join("log")).unwrap();
        let child = (self.start)(self.folder.path(), self.port)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .expect("the server is not installed: run e2e/install.sh servers");
        self.child = Some(child);
        wait("the server's port", async || {
            let ended = self.child.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none(), "the server ended: {}", self.log());
            TcpStream::connect(("127.0.0.1", self.port)).is_ok()
        })
        .await;
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.folder().join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}
