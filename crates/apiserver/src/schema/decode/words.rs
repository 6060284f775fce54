//! Go's sentences about bodies that are no JSON, and the scalars with a syntax of their own.

use std::borrow::Cow;

use serde_json::Value;

/// The start of a body, as upstream quotes it.
pub(super) fn summary(body: &[u8]) -> String {
    const MAX: usize = 30;
    if body.is_empty() {
        return "<empty>".into();
    }
    let cut = &body[..body.len().min(MAX)];
    let dots = if body.len() > MAX { " ..." } else { "" };
    if body[0] == b'{' {
        format!("{}{dots}", String::from_utf8_lossy(cut))
    } else {
        format!("{}{dots}", cut.iter().map(|b| format!("{b:02x}")).collect::<String>())
    }
}

/// Go's wording of a syntax error.
pub(super) fn go_syntax_error(error: &serde_json::Error, body: &[u8]) -> String {
    if error.is_eof() {
        return "unexpected end of JSON input".into();
    }
    if error.is_data() {
        return error.to_string();
    }
    let at = body.split_inclusive(|b| *b == b'\n').take(error.line().saturating_sub(1)).map(<[u8]>::len).sum::<usize>();
    let found = body.get(at + error.column().saturating_sub(1)).or(body.last()).copied().unwrap_or(b' ');
    let what = error.to_string();
    if what.starts_with("recursion limit") {
        return "exceeded max depth".into();
    }
    let place = if what.starts_with("trailing characters") {
        "after top-level value"
    } else if what.starts_with("key must be a string") {
        "looking for beginning of object key string"
    } else if what.contains("expected `:`") {
        "after object key"
    } else if what.contains("expected `,`") {
        if what.contains("`]`") { "after array element" } else { "after object key:value pair" }
    } else {
        "looking for beginning of value"
    };
    format!("invalid character '{}' {place}", char::from(found).escape_default())
}

pub(super) fn go_value(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

pub(super) fn valid_base64(text: &str) -> Result<(), String> {
    use base64::Engine as _;
    let clean: Cow<'_, str> =
        if text.contains(['\n', '\r']) { text.replace(['\n', '\r'], "").into() } else { text.into() };
    base64::engine::general_purpose::STANDARD.decode(clean.as_bytes()).map(drop).map_err(|e| {
        let at = match e {
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _) => at,
            base64::DecodeError::InvalidLength(_) | base64::DecodeError::InvalidPadding => clean.len(),
        };
        format!("illegal base64 data at input byte {at}")
    })
}

/// RFC 3339 in any zone, stored in UTC with the precision the type has.
pub(super) fn time(text: &str, micros: bool) -> Result<Value, String> {
    let parsed: jiff::Timestamp = text.parse().map_err(|_| {
        format!("parsing time {text:?} as \"2006-01-02T15:04:05Z07:00\": cannot parse {text:?} as \"2006\"")
    })?;
    let format = if micros { "%Y-%m-%dT%H:%M:%S.%6fZ" } else { "%Y-%m-%dT%H:%M:%SZ" };
    Ok(parsed.strftime(format).to_string().into())
}
