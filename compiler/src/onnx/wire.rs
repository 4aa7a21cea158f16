//! The wire guard: looks at a file's protobuf structure before the decoder does.
//!
//! The decoder (protobuf 3.4.0, which onnx-protobuf needs) recurses without bound into groups of unknown fields
//! (RUSTSEC-2024-0437); a crafted file of a few megabytes overflows the stack. ONNX has no groups, so the guard
//! rejects every group, bounds nesting, and checks every length. Since it walks the tensors anyway, it also leaves
//! large raw data out of what the decoder sees: [`slim`] replaces it by its byte range, so weights are read from
//! the mapped file instead of being copied.

/// Deepest nesting of messages; an If within a Loop within a function takes about ten.
const MAX_DEPTH: usize = 64;
/// Most messages: the decoder gives each some hundred bytes, be it empty.
const MAX_MESSAGES: usize = 1 << 22;
/// Raw data up to this size stays in the message.
const INLINE_BYTES: usize = 1024;
/// `external_data` key under which [`slim`] records where raw data stood in the file.
pub const RANGE_KEY: &str = "slrc.range";

/// Message types of onnx.proto, as far as they nest.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    ValueInfo,
    Type,
    TypeTensor,
    TypeNested,
    TypeMap,
    Shape,
    Function,
    Training,
    Annotation,
    /// A message whose fields are scalars or strings only.
    Flat,
}

/// The message type of a length-delimited field, if it is a message.
fn submessage(of: Message, field: u64) -> Option<Message> {
    use Message::*;
    match (of, field) {
        (Model, 7) => Some(Graph),
        (Model, 20) => Some(Training),
        (Model, 25) => Some(Function),
        (Model, 8 | 14) => Some(Flat),
        (Graph, 1) => Some(Node),
        (Graph, 5) => Some(Tensor),
        (Graph, 11..=13) => Some(ValueInfo),
        (Graph, 14) => Some(Annotation),
        (Graph, 15) => Some(SparseTensor),
        (Graph, 16) => Some(Flat),
        (Node, 5) => Some(Attribute),
        (Node, 9) => Some(Flat),
        (Attribute, 5 | 10) => Some(Tensor),
        (Attribute, 6 | 11) => Some(Graph),
        (Attribute, 14 | 15) => Some(Type),
        (Attribute, 22 | 23) => Some(SparseTensor),
        (Tensor, 3 | 13 | 16) => Some(Flat),
        (SparseTensor, 1 | 2) => Some(Tensor),
        (ValueInfo, 2) => Some(Type),
        (ValueInfo, 4) => Some(Flat),
        (Type, 1 | 8) => Some(TypeTensor),
        (Type, 4 | 9) => Some(TypeNested),
        (Type, 5) => Some(TypeMap),
        (TypeTensor, 2) => Some(Shape),
        (TypeNested, 1) => Some(Type),
        (TypeMap, 2) => Some(Type),
        (Shape, 1) => Some(Flat),
        (Function, 7) => Some(Node),
        (Function, 9 | 14) => Some(Flat),
        (Function, 11) => Some(Attribute),
        (Function, 12) => Some(ValueInfo),
        (Training, 1 | 2) => Some(Graph),
        (Training, 3 | 4) => Some(Flat),
        (Annotation, 2) => Some(Flat),
        _ => None,
    }
}

/// Checks a serialized ModelProto and returns it without large raw data; `file` offsets are recorded in its place.
pub fn slim(bytes: &[u8]) -> Result<Vec<u8>, String> {
    let mut out = Vec::with_capacity(bytes.len().min(1 << 20));
    walk(bytes, 0, Message::Model, 0, &mut 0, &mut out)?;
    Ok(out)
}

/// Copies one message, nested ones recursively. `base` is the file offset of `bytes`.
fn walk(
    bytes: &[u8],
    base: usize,
    message: Message,
    depth: usize,
    messages: &mut usize,
    out: &mut Vec<u8>,
) -> Result<(), String> {
    *messages += 1;
    if *messages > MAX_MESSAGES {
        return Err(format!("it has more than {MAX_MESSAGES} messages"));
    }
    if depth > MAX_DEPTH {
        return Err(format!("messages are nested more than {MAX_DEPTH} deep"));
    }
    let mut at = 0;
    while at < bytes.len() {
        let start = at;
        let key = varint(bytes, &mut at, base)?;
        let (field, wire) = (key >> 3, key & 7);
        if field == 0 {
            return Err(format!("field number 0 at byte {}", base + start));
        }
        match wire {
            0 => {
                varint(bytes, &mut at, base)?;
                out.extend_from_slice(&bytes[start..at]);
            }
            1 | 5 => {
                let size = if wire == 1 { 8 } else { 4 };
                take(bytes, &mut at, size, base)?;
                out.extend_from_slice(&bytes[start..at]);
            }
            2 => {
                let length = varint(bytes, &mut at, base)?;
                let length = usize::try_from(length).map_err(|_| too_long(base + start))?;
                let body_at = base + at;
                let body = take(bytes, &mut at, length, base)?;
                if (message, field) == (Message::Tensor, 13) && contains(body, RANGE_KEY.as_bytes()) {
                    return Err(format!(
                        "external data at byte {body_at} uses the key {RANGE_KEY}, which is slrc's own"
                    ));
                }
                if let Some(inner) = submessage(message, field) {
                    let mut sub = Vec::new();
                    walk(body, body_at, inner, depth + 1, messages, &mut sub)?;
                    put_bytes(out, key, &sub);
                } else if message == Message::Tensor && field == 9 && length > INLINE_BYTES {
                    let mut entry = Vec::new();
                    put_bytes(&mut entry, 1 << 3 | 2, RANGE_KEY.as_bytes());
                    put_bytes(&mut entry, 2 << 3 | 2, format!("{body_at},{length}").as_bytes());
                    put_bytes(out, 13 << 3 | 2, &entry);
                } else {
                    out.extend_from_slice(&bytes[start..at]);
                }
            }
            3 | 4 => return Err(format!("protobuf group at byte {}: ONNX has none", base + start)),
            other => return Err(format!("wire type {other} at byte {} does not exist", base + start)),
        }
    }
    Ok(())
}

fn contains(bytes: &[u8], part: &[u8]) -> bool {
    bytes.windows(part.len()).any(|w| w == part)
}

fn too_long(at: usize) -> String {
    format!("the field at byte {at} ends behind its message: the file is truncated or damaged")
}

fn take<'a>(bytes: &'a [u8], at: &mut usize, length: usize, base: usize) -> Result<&'a [u8], String> {
    let end = at.checked_add(length).filter(|&e| e <= bytes.len()).ok_or_else(|| too_long(base + *at))?;
    let body = &bytes[*at..end];
    *at = end;
    Ok(body)
}

fn varint(bytes: &[u8], at: &mut usize, base: usize) -> Result<u64, String> {
    let start = *at;
    let mut value = 0u64;
    for shift in (0..70).step_by(7) {
        let &byte = bytes.get(*at).ok_or_else(|| too_long(base + start))?;
        *at += 1;
        if shift < 64 {
            value |= u64::from(byte & 0x7f) << shift;
        }
        if byte & 0x80 == 0 {
            return Ok(value);
        }
    }
    Err(format!("a number at byte {} has more than ten bytes", base + start))
}

fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

fn put_bytes(out: &mut Vec<u8>, key: u64, body: &[u8]) {
    put_varint(out, key);
    put_varint(out, body.len() as u64);
    out.extend_from_slice(body);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(key: u64, body: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        put_bytes(&mut out, key, body);
        out
    }

    #[test]
    fn groups_are_rejected_at_any_depth() {
        // A graph of unknown group fields nested two million deep: the decoder alone would overflow the stack.
        let groups = vec![0x0b; 2_000_000];
        assert!(slim(&message(7 << 3 | 2, &groups)).is_err_and(|e| e.contains("group")));
        assert!(slim(&groups).is_err_and(|e| e.contains("group")));
    }

    #[test]
    fn nesting_is_bounded() {
        let mut body = Vec::new();
        for _ in 0..60 {
            body = message(1 << 3 | 2, &message(5 << 3 | 2, &message(6 << 3 | 2, &body)));
        }
        assert!(slim(&message(7 << 3 | 2, &body)).is_err_and(|e| e.contains("nested")));
    }

    #[test]
    fn empty_messages_do_not_fill_memory() {
        // Two bytes each in the file.
        let nodes: Vec<u8> = [1 << 3 | 2, 0].repeat(MAX_MESSAGES);
        assert!(slim(&message(7 << 3 | 2, &nodes)).is_err_and(|e| e.contains("messages")));
    }

    #[test]
    fn the_key_of_ranges_is_not_for_files() {
        let entry = [message(1 << 3 | 2, RANGE_KEY.as_bytes()), message(2 << 3 | 2, b"0,8")].concat();
        let tensor = message(5 << 3 | 2, &message(13 << 3 | 2, &entry));
        assert!(slim(&message(7 << 3 | 2, &tensor)).is_err_and(|e| e.contains(RANGE_KEY)));
    }

    #[test]
    fn lengths_are_checked() {
        for bytes in [&[0x3a, 0x05, 0x01][..], &[0x08], &[0xff; 12], &[0x0d, 1, 2], &[0x06, 1]] {
            assert!(slim(bytes).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn large_raw_data_becomes_a_range() {
        let tensor = message(9 << 3 | 2, &vec![7; 5000]);
        let graph = message(5 << 3 | 2, &tensor);
        let model = message(7 << 3 | 2, &graph);
        let out = slim(&model).expect("well formed");
        assert!(out.len() < 100);
        let text = String::from_utf8_lossy(&out).into_owned();
        let at = model.iter().position(|&b| b == 7).expect("data");
        assert!(text.contains(&format!("{at},5000")), "{text}");
    }
}
