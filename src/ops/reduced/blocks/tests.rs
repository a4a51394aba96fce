use super::*;
use crate::rng::Seed;

const FORMATS: [BlockFormat; 4] = [
    BlockFormat::Nf4,
    BlockFormat::Q4_0,
    BlockFormat::Q4_1,
    BlockFormat::Q8_0,
];

fn numbers(len: usize) -> Vec<f32> {
    let seed = Seed::new(4);
    (0..len).map(|i| seed.normal(i as u64) as f32).collect()
}

/// The largest difference from what was rounded, as a part of the largest number of the block.
fn largest_error(format: BlockFormat, values: &[f32], got: &[f32]) -> f32 {
    let blocks = values.chunks(format.len()).zip(got.chunks(format.len()));
    let of_block = |(values, got): (&[f32], &[f32])| {
        let largest = values.iter().fold(0f32, |most, x| most.max(x.abs()));
        let errors = values.iter().zip(got).map(|(a, b)| (a - b).abs());
        errors.fold(0f32, f32::max) / largest
    };
    blocks.map(of_block).fold(0.0, f32::max)
}

#[test]
fn rounding_is_off_by_half_a_step() {
    // Rows that end with blocks, inside blocks, and between two numbers of a byte; a last block that is short.
    for [outputs, inputs] in [[1, 64], [33, 128], [20, 70], [17, 33], [3, 1]] {
        let values = numbers(outputs * inputs);
        for format in FORMATS {
            let most = match format {
                // Half of the widest gap, 1 - 0.696, and what a scale in 8 bits is off by.
                BlockFormat::Nf4 => 0.16 + 0.02,
                // The step is an eighth, and one end of the range is short of half a step.
                BlockFormat::Q4_0 => 0.126,
                // A fifteenth of the range, at most twice the largest.
                BlockFormat::Q4_1 => 0.068,
                BlockFormat::Q8_0 => 0.0045,
            };
            let blocks = Blocks::quantize(format, &values, [outputs, inputs]);
            let off = largest_error(format, &values, &blocks.values());
            assert!(off < most, "{format:?} {outputs} x {inputs}: {off}");
            assert!(off > 0.0 || format != BlockFormat::Q8_0 || values.len() == 3);
        }
    }
}

#[test]
fn numbers_are_read_along_and_across() {
    for [outputs, inputs] in [[33, 128], [20, 70], [17, 33]] {
        let values = numbers(outputs * inputs);
        for format in FORMATS {
            let blocks = Blocks::quantize(format, &values, [outputs, inputs]);
            let all = blocks.values();
            for k in [0, 31, inputs - 1] {
                let mut out = vec![0f32; outputs - 1];
                blocks.across(k, 1..outputs, &mut out);
                let column: Vec<f32> = (1..outputs).map(|row| all[row * inputs + k]).collect();
                assert_eq!(out, column, "{format:?}");
            }
        }
    }
}

#[test]
fn rows_in_another_order_keep_their_numbers() {
    let [outputs, inputs] = [40, 128];
    let order = Arc::new(
        (0..outputs)
            .map(|row| row * 7 % outputs)
            .collect::<Vec<_>>(),
    );
    // More than one group of scales: 80 blocks of 64 are not, 300 rows are.
    for outputs in [outputs, 300] {
        let order = match outputs {
            300 => Arc::new((0..300).map(|row| row * 7 % 300).collect()),
            _ => Arc::clone(&order),
        };
        let values = numbers(outputs * inputs);
        for format in FORMATS {
            let blocks = Blocks::quantize(format, &values, [outputs, inputs]);
            let all = blocks.values();
            let twice = blocks.reordered(&order).reordered(&order).values();
            for (row, got) in twice.chunks_exact(inputs).enumerate() {
                let from = order[order[row]] * inputs;
                assert_eq!(got, &all[from..from + inputs], "{format:?}");
            }
        }
    }
}

#[test]
fn blocks_take_the_bytes_they_promise() {
    let shape = [512, 1024];
    let values = numbers(shape[0] * shape[1]);
    for format in FORMATS {
        let bytes = Blocks::quantize(format, &values, shape).num_bytes() as f64;
        let promised = values.len() as f64 * format.bytes();
        // The map of NF4's scales is 1 KiB a tensor.
        assert!((bytes - promised).abs() <= 1024.0, "{format:?}: {bytes}");
    }
}

/// What bitsandbytes makes of the numbers that tests/reference/nf4.py draws.
mod bitsandbytes {
    use serde_json::Value;

    use super::*;

    const REFERENCE: &str = include_str!("../../../../tests/reference/nf4.json");

    /// Exact in f32: sums of three multiples of 2^-20, times a power of two that goes by the block.
    fn drawn(len: usize) -> Vec<f32> {
        let hash = |i: u64| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 44) as f32 / (1 << 20) as f32;
        (0..len as u64)
            .map(|i| {
                let sum = hash(3 * i + 1) + hash(3 * i + 2) + hash(3 * i + 3) - 1.5;
                sum * 0.5f32.powi((i / 64 % 3) as i32)
            })
            .collect()
    }

    fn bytes(value: &Value) -> Vec<u8> {
        let text = value.as_str().unwrap().as_bytes();
        let digit = |c: u8| (c as char).to_digit(16).unwrap() as u8;
        text.chunks_exact(2)
            .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
            .collect()
    }

    fn floats(value: &Value) -> Vec<f32> {
        let numbers = value.as_array().unwrap().iter();
        numbers.map(|x| x.as_f64().unwrap() as f32).collect()
    }

    #[test]
    fn codes_and_scales_are_the_same_to_the_bit() {
        let cases: Vec<Value> = serde_json::from_str(REFERENCE).unwrap();
        assert_eq!(cases.len(), 3);
        for case in &cases {
            let shape = [0, 1].map(|i| case["shape"][i].as_u64().unwrap() as usize);
            let values = drawn(shape[0] * shape[1]);
            let (codes, absmax) = nf4_codes(&values);
            let packed: Vec<u8> = (codes.chunks(2))
                .map(|pair| pair[0] << 4 | pair.get(1).copied().unwrap_or(7))
                .collect();
            let stored = bytes(&case["codes"]);
            assert_eq!(packed, stored);
            // bitsandbytes sums in f32: one unit of the mean's last place, which can move a code that lies between two.
            let mean = case["offset"].as_f64().unwrap() as f32;
            let NestedAbsmax::Nested { offset, .. } = nf4_nested(&absmax) else {
                panic!("double quantisation")
            };
            assert!(
                (offset - mean).abs() <= mean * f32::EPSILON,
                "{offset} {mean}"
            );
            let found = nf4::nested_from(&absmax, mean);
            let blocks = absmax;
            let NestedAbsmax::Nested {
                codes, absmax, map, ..
            } = &found
            else {
                panic!("double quantisation")
            };
            // Codes are those of the nearest numbers. On a CPU bitsandbytes looks them up by 16 bits of the value, and may take the other
            // of two that are as near to that.
            for (i, (&code, other)) in codes.iter().zip(bytes(&case["absmax"])).enumerate() {
                let [ours, theirs] = [code, other].map(|code| map[usize::from(code)]);
                let value = (blocks[i] - mean) / absmax[i / 256];
                let off = (value - (ours + theirs) / 2.0).abs();
                assert!(code == other || off < 2f32.powi(-15), "{i}: {code} {other}");
                assert!(code.abs_diff(other) <= 1, "{i}: {code} {other}");
            }
            assert_eq!(map.as_slice(), floats(&case["nested_map"]));
            assert_eq!(absmax, &floats(&case["nested_absmax"]));

            // With the scales that are stored, the numbers are the same.
            let scales = NestedAbsmax::Nested {
                codes: bytes(&case["absmax"]),
                absmax: floats(&case["nested_absmax"]),
                map: Arc::clone(map),
                offset: mean,
            };
            let blocks = Blocks::from_nf4_bytes(&stored, scales, shape);
            let some: Vec<f32> = blocks.values().into_iter().step_by(53).collect();
            assert_eq!(some, floats(&case["values"]));
        }
    }

    #[test]
    fn the_quantiles_are_theirs() {
        let cases: Vec<Value> = serde_json::from_str(REFERENCE).unwrap();
        assert_eq!(
            super::super::nf4::NF4.as_slice(),
            floats(&cases[0]["quantiles"])
        );
    }
}
