//! A random batch for a plan: what commands that measure train on.

use slrc_plan::DType;
use slrc_plan::random::{Sequence, stream_of};
use slrc_runtime::device::DeviceError;
use slrc_runtime::session::Session;

/// Inputs by name, and labels.
pub(crate) struct Batch {
    inputs: Vec<(String, Vec<u8>)>,
    labels: Vec<i32>,
}

impl Batch {
    /// Seeded values, legal ones where they are indices.
    pub(crate) fn random(session: &Session) -> Batch {
        let mut inputs = Vec::new();
        for i in &session.plan().inputs {
            let mut random = Sequence::new(0, stream_of(&i.name), 0);
            let Some(b) = session.input_buffer(&i.name) else { continue };
            let mut whole = || (random.unit() * i.index_below.unwrap_or(2) as f32) as i32;
            let data: Vec<u8> = match b.dtype {
                DType::F32 => (0..b.count()).flat_map(|_| random.normal().to_le_bytes()).collect(),
                DType::I32 => (0..b.count()).flat_map(|_| whole().to_le_bytes()).collect(),
                DType::U8 => (0..b.count()).map(|_| whole() as u8).collect(),
                DType::Bit => unreachable!("invariant: inputs are of whole bytes"),
            };
            inputs.push((i.name.clone(), data));
        }
        let classes = session.plan().labels.classes;
        let mut random = Sequence::new(0, stream_of("labels"), 0);
        let count = session.labels_buffer().count();
        let labels = (0..count).map(|_| (random.unit() * classes as f32) as i32).collect();
        Batch { inputs, labels }
    }

    /// Puts it on the session's device.
    pub(crate) fn feed(&self, session: &mut Session) -> Result<(), DeviceError> {
        for (name, bytes) in &self.inputs {
            session.set_input(name, bytes)?;
        }
        session.set_labels(&self.labels)
    }
}
