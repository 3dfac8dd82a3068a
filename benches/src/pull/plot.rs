//! A bar chart as SVG, by hand: it is read in review and shown by README.

use std::fmt::Write;

/// Bars of one image.
pub(super) struct Group {
    /// Above the bars.
    pub(super) title: String,
    /// Name and seconds, in order.
    pub(super) bars: Vec<(&'static str, f64)>,
    /// The least that is possible, in seconds.
    pub(super) floor: f64,
}

const WIDTH: f64 = 720.0;
const LEFT: f64 = 120.0;
const RIGHT: f64 = 70.0;
const BAR: f64 = 18.0;
const TITLE: f64 = 30.0;

/// The whole picture. Each group has its own scale: what matters is the ratio within it.
pub(super) fn draw(groups: &[Group], caption: &str) -> String {
    let height: f64 =
        groups.iter().map(|group| TITLE + BAR * group.bars.len() as f64 + 12.0).sum::<f64>() + 34.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#ffffff\"/>\n"
    );
    let mut y = 6.0;
    for group in groups {
        let longest = group.bars.iter().map(|(_, seconds)| *seconds).fold(group.floor, f64::max).max(1e-9);
        let scale = (WIDTH - LEFT - RIGHT) / longest;
        // Writing to a String cannot fail.
        let _ = writeln!(
            svg,
            "<text x=\"{LEFT}\" y=\"{}\" font-weight=\"bold\">{}</text>",
            y + 18.0,
            group.title
        );
        y += TITLE;
        let top = y;
        for (name, seconds) in &group.bars {
            let colour = if name.starts_with("cofferdam") { "#1f6feb" } else { "#b0b8c4" };
            let (width, middle) = (seconds * scale, y + 12.0);
            let _ = writeln!(
                svg,
                "<text x=\"{}\" y=\"{middle}\" text-anchor=\"end\">{name}</text>\
                 <rect x=\"{LEFT}\" y=\"{}\" width=\"{width:.1}\" height=\"{}\" fill=\"{colour}\"/>\
                 <text x=\"{:.1}\" y=\"{middle}\">{seconds:.2} s</text>",
                LEFT - 8.0,
                y + 1.0,
                BAR - 4.0,
                LEFT + width + 6.0
            );
            y += BAR;
        }
        let x = LEFT + group.floor * scale;
        let _ = writeln!(
            svg,
            "<line x1=\"{x:.1}\" y1=\"{top}\" x2=\"{x:.1}\" y2=\"{y}\" stroke=\"#d1242f\" stroke-dasharray=\"3 2\"/>"
        );
        y += 12.0;
    }
    let _ =
        writeln!(svg, "<text x=\"6\" y=\"{}\" font-size=\"10\" fill=\"#57606a\">{caption}</text>", y + 14.0);
    svg + "</svg>\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bar_is_drawn_within_the_picture() {
        let bars = vec![("one", 1.0), ("two", 4.0)];
        let svg = draw(&[Group { title: "image".to_owned(), bars, floor: 0.5 }], "caption");
        assert_eq!(svg.matches("<rect").count(), 3);
        assert!(
            svg.contains("width=\"530.0\"") && svg.contains("width=\"132.5\"") && svg.contains("caption")
        );
    }
}
