//! A small HTTP/1.1 client over one fresh connection, so that a test decides what is a new connection and from which
//! network namespace it comes. Not for TLS.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// What came back. Header names are in lower case.
#[derive(Debug, Clone)]
pub struct Response {
    pub status: u16,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

impl Response {
    /// The body as text, without the line end.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).trim_end().to_owned()
    }
}

/// `GET path` from `address`, every step within `limit`.
pub fn get(address: SocketAddr, path: &str, limit: Duration) -> io::Result<Response> {
    request(address, "GET", path, &[], &[], limit)
}

/// One request on one connection.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
    limit: Duration,
) -> io::Result<Response> {
    let mut stream = TcpStream::connect_timeout(&address, limit)?;
    stream.set_read_timeout(Some(limit))?;
    stream.set_write_timeout(Some(limit))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("Content-Length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes())?;
    stream.write_all(body)?;
    stream.flush()?;
    read_response(&mut BufReader::new(stream), method)
}

fn read_response(stream: &mut impl BufRead, method: &str) -> io::Result<Response> {
    let line = read_line(stream)?;
    let status = line.split(' ').nth(1).and_then(|s| s.parse().ok()).ok_or_else(|| bad("no HTTP status line"))?;
    let mut headers = BTreeMap::new();
    loop {
        let line = read_line(stream)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| bad("a header without a colon"))?;
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = Vec::new();
    if method == "HEAD" || status == 204 || status == 304 {
        return Ok(Response { status, headers, body });
    }
    if headers.get("transfer-encoding").is_some_and(|v| v.eq_ignore_ascii_case("chunked")) {
        loop {
            let size = read_line(stream)?;
            let size =
                u64::from_str_radix(size.split(';').next().unwrap_or(""), 16).map_err(|_| bad("a chunk size"))?;
            if size == 0 {
                break;
            }
            stream.take(size).read_to_end(&mut body)?;
            read_line(stream)?;
        }
    } else if let Some(length) = headers.get("content-length") {
        let length: u64 = length.parse().map_err(|_| bad("a content-length"))?;
        stream.take(length).read_to_end(&mut body)?;
    } else {
        stream.read_to_end(&mut body)?;
    }
    Ok(Response { status, headers, body })
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    if stream.take(64 * 1024).read_line(&mut line)? == 0 {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the peer closed the connection before answering"));
    }
    Ok(line.trim_end().to_owned())
}

fn bad(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not an HTTP answer: {what}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> io::Result<Response> {
        read_response(&mut text.as_bytes(), "GET")
    }

    #[test]
    fn reads_bodies_by_length_by_chunks_and_to_the_end() {
        let fixed = parse("HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nabcdef").expect("an answer");
        assert_eq!((fixed.status, fixed.text().as_str()), (200, "abc"));
        let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).expect("an answer").text(), "abcde");
        assert_eq!(parse("HTTP/1.1 404 Not Found\r\n\r\nno\n").expect("an answer").text(), "no");
    }

    #[test]
    fn says_when_the_peer_closes_or_talks_something_else() {
        assert_eq!(parse("").expect_err("closed").kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(parse("SSH-2.0\r\n\r\n").expect_err("not http").kind(), io::ErrorKind::InvalidData);
    }
}
