//! One allocation per space, and operands as pointers into them.

use std::collections::BTreeMap;

use slrc_plan::{Buffer, DType, Plan, Space, View};

use crate::device::DeviceError;

/// Zeroed memory that begins at a cache line. It is allocated with the alignment of a word, since only that comes from
/// the system zeroed: anything stricter would be cleared here, and every page touched.
struct Block {
    words: Vec<u64>,
    /// Bytes before the first cache line.
    start: usize,
}

/// Bytes of a cache line.
const LINE: usize = 64;

impl Block {
    fn zeroed(bytes: usize) -> Option<Block> {
        let words = bytes.div_ceil(size_of::<u64>()).checked_add(LINE / size_of::<u64>())?;
        let words = bytemuck::allocation::try_zeroed_vec::<u64>(words).ok()?;
        let start = words.as_ptr().cast::<u8>().align_offset(LINE);
        Some(Block { words, start })
    }

    fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[self.start..]
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        &mut bytemuck::cast_slice_mut(&mut self.words)[self.start..]
    }
}

/// A plan's memory. Pages are touched only when they are used.
pub(super) struct Memory {
    spaces: BTreeMap<Space, Block>,
    /// Bytes asked for, which a block may exceed.
    bytes_of: BTreeMap<Space, usize>,
    buffers: BTreeMap<String, Buffer>,
    /// Start of every space; the allocations above are never resized.
    bases: BTreeMap<Space, Pointer>,
}

/// A pointer that threads may share; see the contract in [`crate::cpu`].
#[derive(Clone, Copy, Debug)]
pub(super) struct Pointer(pub(super) *mut u8);

// SAFETY: tasks write disjoint elements, by the contract of the folder.
unsafe impl Send for Pointer {}
// SAFETY: as above.
unsafe impl Sync for Pointer {}

/// A view resolved to memory.
#[derive(Clone, Debug)]
pub(super) struct Operand {
    pub(super) base: Pointer,
    /// Element type.
    pub(super) dtype: DType,
    /// Elements to step per unit of each index dimension.
    pub(super) strides: Vec<usize>,
    /// First and one past the last byte of the buffer, to tell which operands share memory.
    pub(super) range: (usize, usize),
}

impl Operand {
    /// Pointer to element `at` (in elements) of an f32 operand.
    pub(super) fn f32(&self, at: usize) -> *mut f32 {
        debug_assert_eq!(self.dtype, DType::F32);
        self.base.0.cast::<f32>().wrapping_add(at)
    }

    /// Pointer to element `at` of an i32 operand.
    pub(super) fn i32(&self, at: usize) -> *mut i32 {
        debug_assert_eq!(self.dtype, DType::I32);
        self.base.0.cast::<i32>().wrapping_add(at)
    }

    /// Pointer to element `at` of a u8 operand.
    pub(super) fn u8(&self, at: usize) -> *mut u8 {
        debug_assert_eq!(self.dtype, DType::U8);
        self.base.0.wrapping_add(at)
    }

    /// Pointer to the byte that holds flag `at` of an operand of bits.
    pub(super) fn bits(&self, at: usize) -> *mut u8 {
        debug_assert_eq!(self.dtype, DType::Bit);
        self.base.0.wrapping_add(at / 8)
    }

    /// Pointer to the bytes of element `at`.
    pub(super) fn bytes(&self, at: usize) -> *mut u8 {
        self.base.0.wrapping_add(self.dtype.bytes(at))
    }

    /// Whether two operands may share memory.
    pub(super) fn overlaps(&self, other: &Operand) -> bool {
        self.range.0 < other.range.1 && other.range.0 < self.range.1
    }
}

impl Memory {
    pub(super) fn allocate(plan: &Plan) -> Result<Memory, DeviceError> {
        let bytes_of = Space::ALL.iter().map(|&s| (s, plan.memory.of(s))).collect();
        let mut spaces = BTreeMap::new();
        let mut bases = BTreeMap::new();
        for &space in Space::ALL {
            let needed = plan.memory.of(space);
            let mut block = Block::zeroed(needed).ok_or(DeviceError::OutOfMemory { needed })?;
            bases.insert(space, Pointer(block.bytes_mut().as_mut_ptr()));
            spaces.insert(space, block);
        }
        let buffers = plan.all_buffers().map(|b| (b.id.clone(), b.clone())).collect();
        Ok(Memory { spaces, bytes_of, buffers, bases })
    }

    pub(super) fn bytes(&self, b: &Buffer) -> &[u8] {
        &self.spaces[&b.space].bytes()[b.offset..b.offset + b.bytes]
    }

    pub(super) fn bytes_mut(&mut self, b: &Buffer) -> &mut [u8] {
        let block = self.spaces.get_mut(&b.space).expect("invariant: every space is allocated");
        &mut block.bytes_mut()[b.offset..b.offset + b.bytes]
    }

    /// All bytes of a space.
    pub(super) fn space(&self, space: Space) -> &[u8] {
        &self.spaces[&space].bytes()[..self.bytes_of[&space]]
    }

    /// Resolves a view.
    pub(super) fn operand(&self, v: &View) -> Operand {
        let b = &self.buffers[&v.buffer];
        let space = self.bases[&b.space].0;
        let start = space.wrapping_add(b.offset);
        let base = Pointer(start.wrapping_add(b.dtype.bytes(v.offset)));
        Operand { base, dtype: b.dtype, strides: v.strides.clone(), range: (start as usize, start as usize + b.bytes) }
    }
}
