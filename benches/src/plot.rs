//! Line charts as SVG: panels side by side, the same lines in each, one legend.

use std::fmt::Write as _;

const PANEL: (f64, f64) = (250.0, 180.0);
const MARGIN: (f64, f64) = (46.0, 40.0);
const LEGEND: f64 = 34.0;
const COLUMNS: usize = 4;
const COLOURS: [&str; 8] = [
    "#0b6e4f", "#c1440e", "#1f4e9c", "#8a5a00", "#7b3f98", "#5c6670", "#b0176b", "#2a9d9d",
];
const TICKS: u32 = 4;

/// Lines over labelled places of an x axis.
#[derive(Debug, Clone)]
pub struct Panel {
    /// Above it.
    pub title: String,
    /// Places of the x axis, from left to right.
    pub places: Vec<String>,
    /// Name and a value for each place; a line ends where there is none.
    pub lines: Vec<(String, Vec<Option<f64>>)>,
}

/// Panels with the same axes.
#[derive(Debug, Clone)]
pub struct Chart {
    /// Above all.
    pub title: String,
    /// Below each panel.
    pub x: String,
    /// Beside each panel.
    pub y: String,
    /// Upper end of the y axis, which begins at zero.
    pub top: f64,
    /// In rows of four.
    pub panels: Vec<Panel>,
}

impl Chart {
    /// The picture.
    #[must_use]
    pub fn svg(&self) -> String {
        let columns = self.panels.len().clamp(1, COLUMNS);
        let rows = self.panels.len().div_ceil(COLUMNS).max(1);
        let (across, down) = (PANEL.0 + 1.5 * MARGIN.0, PANEL.1 + 2.0 * MARGIN.1);
        let width = columns as f64 * across;
        let height = rows as f64 * down + LEGEND + 20.0;
        let mut out = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {height:.0}\" \
             font-family=\"sans-serif\" font-size=\"11\">\n\
             <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
        );
        text(&mut out, (width / 2.0, 18.0), "middle", 14, &self.title);
        self.legend(&mut out);
        for (number, panel) in self.panels.iter().enumerate() {
            let left = (number % COLUMNS) as f64 * across + MARGIN.0;
            let top = (number / COLUMNS) as f64 * down + LEGEND + 20.0 + MARGIN.1 / 2.0;
            self.panel(&mut out, panel, left, top);
        }
        out.push_str("</svg>\n");
        out
    }

    fn legend(&self, out: &mut String) {
        let names = self.panels.first().map_or(&[][..], |panel| &panel.lines);
        let mut left = MARGIN.0;
        for (number, (name, _)) in names.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let (from, to) = (left, left + 18.0);
            line(out, (from, LEGEND), (to, LEGEND), colour, 3.0);
            text(out, (to + 5.0, LEGEND + 4.0), "start", 11, name);
            left = to + 20.0 + 7.0 * name.len() as f64;
        }
    }

    fn panel(&self, out: &mut String, panel: &Panel, left: f64, top: f64) {
        let (width, height) = PANEL;
        text(
            out,
            (left + width / 2.0, top - 6.0),
            "middle",
            12,
            &panel.title,
        );
        for tick in 0..=TICKS {
            let value = self.top * f64::from(tick) / f64::from(TICKS);
            let y = top + height - height * f64::from(tick) / f64::from(TICKS);
            line(out, (left, y), (left + width, y), "#d8d8d8", 1.0);
            text(out, (left - 5.0, y + 4.0), "end", 10, &short(value));
        }
        let step = width / panel.places.len().max(1) as f64;
        let place = |number: usize| left + step * (number as f64 + 0.5);
        for (number, label) in panel.places.iter().enumerate() {
            text(
                out,
                (place(number), top + height + 14.0),
                "middle",
                10,
                label,
            );
        }
        let below = (left + width / 2.0, top + height + 28.0);
        text(out, below, "middle", 10, &self.x);
        let _infallible = writeln!(
            out,
            "<text transform=\"translate({:.1} {:.1}) rotate(-90)\" text-anchor=\"middle\">{}</text>",
            left - 32.0,
            top + height / 2.0,
            escape(&self.y)
        );
        for (number, (_, values)) in panel.lines.iter().enumerate() {
            let colour = COLOURS[number % COLOURS.len()];
            let at = |(index, value): (usize, &Option<f64>)| {
                let share = ((*value)? / self.top).clamp(0.0, 1.0);
                Some((place(index), top + height * (1.0 - share)))
            };
            let points: Vec<_> = values.iter().enumerate().map(at).collect();
            for pair in points.windows(2) {
                if let [Some(from), Some(to)] = pair {
                    line(out, *from, *to, colour, 2.0);
                }
            }
            for (x, y) in points.into_iter().flatten() {
                let _infallible = writeln!(
                    out,
                    "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"
                );
            }
        }
    }
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), colour: &str, width: f64) {
    let _infallible = writeln!(
        out,
        "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
         stroke-width=\"{width}\"/>",
        from.0, from.1, to.0, to.1
    );
}

fn text(out: &mut String, at: (f64, f64), anchor: &str, size: u32, words: &str) {
    let _infallible = writeln!(
        out,
        "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"{anchor}\" font-size=\"{size}\">{}</text>",
        at.0,
        at.1,
        escape(words)
    );
}

fn escape(words: &str) -> String {
    words
        .replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

fn short(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::{Chart, Panel};

    #[test]
    fn a_line_ends_where_there_is_no_value() {
        let panel = Panel {
            title: "a < b".to_owned(),
            places: vec!["0".to_owned(), "1".to_owned(), "2".to_owned()],
            lines: vec![("one".to_owned(), vec![Some(0.5), None, Some(1.0)])],
        };
        let chart = Chart {
            title: "t".to_owned(),
            x: "x".to_owned(),
            y: "y".to_owned(),
            top: 1.0,
            panels: vec![panel],
        };
        let svg = chart.svg();
        assert!(svg.contains("a &lt; b"));
        assert_eq!(svg.matches("<circle").count(), 2);
        assert!(!svg.contains("stroke-width=\"2\""), "no line between");
    }
}
