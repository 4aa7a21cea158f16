//! Flags as bits, eight a byte, the first in the lowest.

/// The flags of numbers: whether each is other than zero. A byte for every eight.
pub(super) fn pack(numbers: &[f32], to: &mut [u8]) {
    for (byte, eight) in to.iter_mut().zip(numbers.chunks_exact(8)) {
        let flags: [u8; 8] = std::array::from_fn(|i| u8::from(eight[i] != 0.0));
        // Flag i, in byte i, moves to bit i of the highest byte; no two of the 64 products meet in a bit.
        *byte = (u64::from_le_bytes(flags).wrapping_mul(0x0102_0408_1020_4080) >> 56) as u8;
    }
}

/// 0 or 1 for each flag, as many as there are places.
pub(super) fn unpack(from: &[u8], to: &mut [f32]) {
    for (&byte, places) in from.iter().zip(to.chunks_mut(8)) {
        let byte = u32::from(byte);
        if let Ok(eight) = <&mut [f32; 8]>::try_from(&mut *places) {
            *eight = std::array::from_fn(|i| (byte >> i & 1) as f32);
        } else {
            places.iter_mut().enumerate().for_each(|(i, x)| *x = (byte >> i & 1) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_there_and_back() {
        for byte in 0..=u8::MAX {
            let mut numbers = [9.0; 8];
            unpack(&[byte], &mut numbers);
            let expected: Vec<f32> = (0..8).map(|i| f32::from(byte >> i & 1)).collect();
            assert_eq!(numbers[..], expected);
            numbers.iter_mut().for_each(|x| *x *= -3.5);
            let mut back = [0];
            pack(&numbers, &mut back);
            assert_eq!(back, [byte]);
        }
        let mut three = [9.0; 3];
        unpack(&[0b1010_0101], &mut three);
        assert_eq!(three, [1.0, 0.0, 1.0]);
    }
}
