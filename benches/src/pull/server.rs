//! A registry that costs next to nothing: files go from the page cache to the socket inside the kernel.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::net::{TcpListener, TcpStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use anyhow::Result;
use cofferdam_image::Digest;

use super::images::Made;

enum Body {
    Bytes(&'static str, Vec<u8>, Digest),
    Blob(PathBuf),
}

/// One that runs until the process ends.
pub(super) struct Server {
    /// `127.0.0.1:PORT`.
    address: String,
    requests: Arc<AtomicU64>,
}

impl Server {
    /// The name of an image that is served.
    pub(super) fn image(&self, name: &str) -> String {
        format!("{}/bench/{name}:latest", self.address)
    }

    /// Requests so far.
    pub(super) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }
}

/// Serves the images on a free port of loopback.
pub(super) fn start(images: &[Made]) -> Result<Server> {
    let mut bodies = HashMap::new();
    for image in images {
        let base = format!("/v2/bench/{}", image.shape.name);
        let manifest = Digest::of(&image.manifest);
        for target in ["latest".to_owned(), manifest.to_string()] {
            let body = Body::Bytes(
                "application/vnd.oci.image.manifest.v1+json",
                image.manifest.clone(),
                manifest.clone(),
            );
            bodies.insert(format!("{base}/manifests/{target}"), body);
        }
        let config = Digest::of(&image.config);
        let body = Body::Bytes("application/octet-stream", image.config.clone(), config.clone());
        bodies.insert(format!("{base}/blobs/{config}"), body);
        for blob in &image.blobs {
            bodies.insert(format!("{base}/blobs/{}", blob.digest), Body::Blob(blob.path.clone()));
        }
    }
    let bodies = Arc::new(bodies);
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?.to_string();
    let requests = Arc::new(AtomicU64::new(0));
    let counter = Arc::clone(&requests);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (bodies, counter) = (Arc::clone(&bodies), Arc::clone(&counter));
            // A client that goes away ends its own connection only.
            thread::spawn(move || drop(serve(&stream, &bodies, &counter)));
        }
    });
    Ok(Server { address, requests })
}

fn serve(
    mut stream: &TcpStream,
    bodies: &HashMap<String, Body>,
    requests: &AtomicU64,
) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut reader = BufReader::new(stream);
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        requests.fetch_add(1, Ordering::Relaxed);
        let mut words = line.split_whitespace();
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let mut start = 0;
        loop {
            let mut field = String::new();
            reader.read_line(&mut field)?;
            let Some((name, value)) = field.trim().split_once(':') else { break };
            if name.eq_ignore_ascii_case("range") {
                let from = value.trim().trim_start_matches("bytes=").split('-').next().unwrap_or_default();
                start = from.parse().unwrap_or(0);
            }
        }
        let wants_body = method == "GET";
        match bodies.get(path.split('?').next().unwrap_or_default()) {
            _ if path == "/v2/" => {
                stream.write_all(b"HTTP/1.1 200 OK\r\nDocker-Distribution-Api-Version: registry/2.0\r\nContent-Length: 2\r\n\r\n{}")?;
            }
            None => stream.write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")?,
            Some(Body::Bytes(kind, bytes, digest)) => {
                let length = bytes.len();
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nDocker-Content-Digest: {digest}\r\nContent-Length: {length}\r\n\r\n"
                );
                let body: &[u8] = if wants_body { bytes } else { b"" };
                stream.write_all(&[head.as_bytes(), body].concat())?;
            }
            Some(Body::Blob(path)) => {
                let mut file = File::open(path)?;
                let size = file.metadata()?.len();
                let status = if start > 0 {
                    format!("206 Partial Content\r\nContent-Range: bytes {start}-{}/{size}", size - 1)
                } else {
                    "200 OK".to_owned()
                };
                let head = format!(
                    "HTTP/1.1 {status}\r\nContent-Type: application/octet-stream\r\nAccept-Ranges: bytes\r\nContent-Length: {}\r\n\r\n",
                    size - start
                );
                stream.write_all(head.as_bytes())?;
                if wants_body {
                    file.seek(SeekFrom::Start(start))?;
                    // sendfile(2), by std.
                    std::io::copy(&mut file.take(size - start), &mut stream)?;
                }
            }
        }
    }
}
