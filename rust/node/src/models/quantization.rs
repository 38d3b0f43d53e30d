//! How a model's weights are stored, as people name it: `Q4_K_M`, `F16`.

/// The name of a `general.file_type` (llama.cpp's `llama_ftype`).
pub fn from_file_type(file_type: u64) -> Option<&'static str> {
    Some(match file_type {
        0 => "F32",
        1 => "F16",
        2 => "Q4_0",
        3 => "Q4_1",
        7 => "Q8_0",
        8 => "Q5_0",
        9 => "Q5_1",
        10 => "Q2_K",
        11 => "Q3_K_S",
        12 => "Q3_K_M",
        13 => "Q3_K_L",
        14 => "Q4_K_S",
        15 => "Q4_K_M",
        16 => "Q5_K_S",
        17 => "Q5_K_M",
        18 => "Q6_K",
        19 => "IQ2_XXS",
        20 => "IQ2_XS",
        21 => "Q2_K_S",
        22 => "IQ3_XS",
        23 => "IQ3_XXS",
        24 => "IQ1_S",
        25 => "IQ4_NL",
        26 => "IQ3_S",
        27 => "IQ3_M",
        28 => "IQ2_S",
        29 => "IQ2_M",
        30 => "IQ4_XS",
        31 => "IQ1_M",
        32 => "BF16",
        36 => "TQ1_0",
        37 => "TQ2_0",
        38 => "MXFP4",
        39 => "NVFP4",
        _ => return None,
    })
}

/// The last part of a file name, without its extension, that looks like a quantisation; `UD-` before
/// it belongs to it.
pub fn from_file_name(stem: &str) -> Option<String> {
    let parts: Vec<&str> = stem.split(['-', '.']).collect();
    let position = parts.iter().rposition(|part| looks_like_one(part))?;
    let name = parts[position].to_ascii_uppercase();
    let dynamic = position > 0 && parts[position - 1].eq_ignore_ascii_case("UD");
    Some(if dynamic { format!("UD-{name}") } else { name })
}

fn looks_like_one(part: &str) -> bool {
    let part = part.to_ascii_uppercase();
    if matches!(part.as_str(), "F16" | "F32" | "BF16" | "FP16" | "MXFP4" | "NVFP4") {
        return true;
    }
    let rest = part.strip_prefix("IQ").or_else(|| part.strip_prefix("TQ")).or_else(|| part.strip_prefix('Q'));
    rest.is_some_and(|rest| {
        rest.as_bytes().first().is_some_and(u8::is_ascii_digit)
            && rest.as_bytes().get(1) == Some(&b'_')
            && rest.len() > 2
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_in_file_names() {
        for (stem, found) in [
            ("llama-7b-Q4_K_M", Some("Q4_K_M")),
            ("llama-7b.q8_0", Some("Q8_0")),
            ("Qwen3-0.6B-UD-Q4_K_XL", Some("UD-Q4_K_XL")),
            ("model-f16", Some("F16")),
            ("gpt-oss-20b-mxfp4", Some("MXFP4")),
            ("Qwen3-0.6B", None),
            ("stories260K", None),
            ("q1-report", None),
        ] {
            assert_eq!(from_file_name(stem).as_deref(), found, "{stem}");
        }
    }
}
