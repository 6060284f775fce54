//! How a program's streams travel between the API server, the agent and a shim: frames of a channel, a length (four
//! bytes, big-endian) and that many bytes. Channels 0 to 4 and 255 mean what they do in `v5.channel.k8s.io` (KEP-4006).

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncReadExt};

pub const STDIN: u8 = 0;
pub const STDOUT: u8 = 1;
pub const STDERR: u8 = 2;
/// The last frame to the client: a `Status` that says how it ended.
pub const STATUS: u8 = 3;
/// [`Size`] as JSON.
pub const RESIZE: u8 = 4;
/// The first frame to a shim: [`Request`] as JSON. Only the agent writes it.
pub const REQUEST: u8 = 254;
/// The channel in its one byte will carry no more.
pub const CLOSE: u8 = 255;

const MAX: u32 = 1 << 20;

/// What a client wants to run or to see.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq, Eq)]
pub struct Request {
    /// Empty when attaching.
    pub args: Vec<String>,
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

/// A terminal's size in characters.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Size {
    pub width: u16,
    pub height: u16,
}

pub fn encode(channel: u8, bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(5 + bytes.len());
    frame.push(channel);
    // Callers send what fits a read buffer.
    frame.extend_from_slice(&u32::try_from(bytes.len()).unwrap_or(0).to_be_bytes());
    frame.extend_from_slice(bytes);
    frame
}

/// The next frame; `None` at the end, wherever it comes, and after nonsense.
pub async fn read(from: &mut (impl AsyncRead + Unpin)) -> Option<(u8, Vec<u8>)> {
    let mut head = [0; 5];
    from.read_exact(&mut head).await.ok()?;
    let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]);
    if length > MAX {
        return None;
    }
    let mut body = vec![0; length as usize];
    from.read_exact(&mut body).await.ok()?;
    Some((head[0], body))
}

/// The `Status` of a program that ended with `code`.
pub fn exited(code: i32) -> Value {
    if code == 0 {
        return json!({"metadata": {}, "status": "Success"});
    }
    json!({"metadata": {}, "status": "Failure", "reason": "NonZeroExitCode",
        "message": format!("command terminated with non-zero exit code: exit status {code}"),
        "details": {"causes": [{"reason": "ExitCode", "message": code.to_string()}]}})
}

/// The `Status` of a program that could not be run.
pub fn failed(why: &str) -> Value {
    json!({"metadata": {}, "status": "Failure", "reason": "InternalError", "code": 500,
        "message": format!("Internal error occurred: error executing command in container: {why}"),
        "details": {"causes": [{"message": format!("error executing command in container: {why}")}]}})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn frames_are_read_back_and_nonsense_ends_them() {
        let bytes = [encode(STDOUT, b"hello"), encode(CLOSE, &[STDIN])].concat();
        let mut from = &bytes[..];
        assert_eq!(read(&mut from).await, Some((STDOUT, b"hello".to_vec())));
        assert_eq!(read(&mut from).await, Some((CLOSE, vec![STDIN])));
        assert_eq!(read(&mut from).await, None);
        assert_eq!(read(&mut &[1, 0xff, 0xff, 0xff, 0xff, 0][..]).await, None);
        assert_eq!(read(&mut &[1, 0, 0, 0, 9, 0][..]).await, None);
    }

    #[test]
    fn a_size_as_clients_write_it() {
        let size: Size = serde_json::from_str(r#"{"Width":132,"Height":43}"#).expect("a size");
        assert_eq!((size.width, size.height), (132, 43));
        assert!(serde_json::from_str::<Size>(r#"{"Width":-1,"Height":43}"#).is_err());
    }
}
