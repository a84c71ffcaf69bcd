//! `--plot`: draws bus bandwidth and time by size, with logarithmic axes, as SVG.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::TableRow;
use super::number::general;

/// The width of the picture, and the place of its two charts. The legend is below them.
const WIDTH: f64 = 960.0;
const TOP: f64 = 56.0;
const BOTTOM: f64 = 390.0;
const CHARTS: [(f64, f64); 2] = [(70.0, 460.0), (550.0, 940.0)];

/// Colors that color-blind people can distinguish (Okabe and Ito, 2008), and some more.
const COLORS: [&str; 12] = [
    "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f3c8d",
    "#a5a500", "#8c564b", "#e15759", "#7f7f7f",
];

/// What a curve shows.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CurveKind {
    OutOfPlace,
    InPlace,
    Roof,
}

/// A curve: the index of its case (element type, reduction and root), which gives its color, and
/// its points by size.
struct Curve {
    case: usize,
    kind: CurveKind,
    bandwidth: BTreeMap<usize, f64>,
    microseconds: BTreeMap<usize, f64>,
}

/// An axis with a logarithmic scale.
struct LogAxis {
    /// Values of both ends.
    ends: (f64, f64),
    /// Coordinates of both ends.
    places: (f64, f64),
}

/// The picture of a table.
pub(crate) fn svg(collective: &str, nranks: u32, rows: &[TableRow]) -> String {
    let (cases, curves) = curves(rows);
    let height = BOTTOM + 84.0 + 18.0 * cases.len().saturating_sub(1).div_euclid(4) as f64;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {WIDTH} {height}\" \
         width=\"{WIDTH}\" height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\">\n\
         <rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n"
    );
    let title = format!("{collective}, {nranks} ranks, host memory");
    text(&mut svg, WIDTH / 2.0, 22.0, "middle", &title, "font-size=\"15\"");
    chart(&mut svg, CHARTS[0], "bus bandwidth (GB/s)", &curves, |curve| &curve.bandwidth);
    chart(&mut svg, CHARTS[1], "time (us)", &curves, |curve| &curve.microseconds);
    legend(&mut svg, &cases, &curves);
    svg.push_str("</svg>\n");
    svg
}

/// The names of the cases in the order of the rows, and the curves.
fn curves(rows: &[TableRow]) -> (Vec<String>, Vec<Curve>) {
    let mut cases: Vec<String> = Vec::new();
    let mut curves: Vec<Curve> = Vec::new();
    for row in rows {
        let mut name = row.dtype.name().to_owned();
        if let Some(op) = row.op {
            let _ = write!(name, " {op}");
        }
        if let Some(root) = row.root {
            let _ = write!(name, " root {root}");
        }
        let case = cases.iter().position(|known| *known == name).unwrap_or_else(|| {
            cases.push(name);
            cases.len() - 1
        });
        let mut add = |kind: CurveKind, bandwidth: f64, seconds: f64| {
            let known = curves.iter().position(|c| c.case == case && c.kind == kind);
            let index = known.unwrap_or_else(|| {
                let (bandwidth, microseconds) = Default::default();
                curves.push(Curve { case, kind, bandwidth, microseconds });
                curves.len() - 1
            });
            // A logarithmic axis has no place for 0.
            if row.size > 0 && bandwidth > 0.0 && seconds > 0.0 {
                curves[index].bandwidth.insert(row.size, bandwidth / 1e9);
                curves[index].microseconds.insert(row.size, seconds * 1e6);
            }
        };
        if let Some(measured) = &row.out_of_place {
            add(CurveKind::OutOfPlace, measured.busbw, measured.seconds);
            if let Some(roof) = row.roof {
                add(CurveKind::Roof, measured.busbw * measured.seconds / roof, roof);
            }
        }
        if let Some(measured) = &row.in_place {
            add(CurveKind::InPlace, measured.busbw, measured.seconds);
        }
    }
    (cases, curves)
}

fn chart(
    svg: &mut String,
    (left, right): (f64, f64),
    title: &str,
    curves: &[Curve],
    of: impl Fn(&Curve) -> &BTreeMap<usize, f64>,
) {
    text(svg, (left + right) / 2.0, TOP - 10.0, "middle", title, "");
    let _ = writeln!(
        svg,
        "<rect x=\"{left}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"none\" \
         stroke=\"#888\"/>",
        right - left,
        BOTTOM - TOP
    );
    let points: Vec<(f64, f64)> =
        curves.iter().flat_map(|c| of(c).iter().map(|(&x, &y)| (x as f64, y))).collect();
    if points.is_empty() {
        text(svg, (left + right) / 2.0, (TOP + BOTTOM) / 2.0, "middle", "nothing to show", "");
        return;
    }
    let sizes = LogAxis::new(points.iter().map(|p| p.0), 2.0, (left, right));
    let values = LogAxis::new(points.iter().map(|p| p.1), 10.0, (BOTTOM, TOP));
    for size in sizes.ticks(2.0, 10) {
        let x = sizes.place(size);
        line(svg, (x, TOP), (x, BOTTOM), "#e4e4e4");
        text(svg, x, BOTTOM + 16.0, "middle", &short(size), "");
    }
    text(svg, (left + right) / 2.0, BOTTOM + 33.0, "middle", "size (bytes)", "");
    for value in values.ticks(10.0, 12) {
        let y = values.place(value);
        line(svg, (left, y), (right, y), "#e4e4e4");
        text(svg, left - 5.0, y + 4.0, "end", &general(value), "");
    }
    for curve in curves {
        let (points, color) = (of(curve), COLORS[curve.case % COLORS.len()]);
        let place =
            |(size, value): (&usize, &f64)| (sizes.place(*size as f64), values.place(*value));
        let path: Vec<String> =
            points.iter().map(place).map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
        let dashes = curve.kind.dashes();
        let _ = writeln!(
            svg,
            "<polyline points=\"{}\" fill=\"none\" stroke=\"{color}\" stroke-width=\"2\" \
             {dashes}/>",
            path.join(" ")
        );
        for (x, y) in points.iter().map(place) {
            let _ =
                writeln!(svg, "<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"2.5\" fill=\"{color}\"/>");
        }
    }
}

/// The meaning of the dashes, then the names of the cases in rows of four.
fn legend(svg: &mut String, cases: &[String], curves: &[Curve]) {
    let mut entry = |x: f64, y: f64, color: &str, dashes: &str, name: &str| {
        let _ = writeln!(
            svg,
            "<line x1=\"{x}\" y1=\"{y}\" x2=\"{}\" y2=\"{y}\" stroke=\"{color}\" \
             stroke-width=\"2\" {dashes}/>",
            x + 30.0
        );
        text(svg, x + 36.0, y + 4.0, "start", name, "");
    };
    let column = |index: usize| 70.0 + index as f64 * 220.0;
    let kinds = [CurveKind::OutOfPlace, CurveKind::InPlace, CurveKind::Roof];
    let shown = kinds.into_iter().filter(|kind| curves.iter().any(|curve| curve.kind == *kind));
    for (index, kind) in shown.enumerate() {
        entry(column(index), BOTTOM + 50.0, "#444", kind.dashes(), kind.name());
    }
    for (index, name) in cases.iter().enumerate() {
        let y = BOTTOM + 70.0 + (index / 4) as f64 * 18.0;
        entry(column(index % 4), y, COLORS[index % COLORS.len()], "", name);
    }
}

impl CurveKind {
    fn name(self) -> &'static str {
        match self {
            Self::OutOfPlace => "out of place",
            Self::InPlace => "in place",
            Self::Roof => "roof",
        }
    }

    fn dashes(self) -> &'static str {
        match self {
            Self::OutOfPlace => "",
            Self::InPlace => "stroke-dasharray=\"6 3\"",
            Self::Roof => "stroke-dasharray=\"2 3\"",
        }
    }
}

impl LogAxis {
    /// An axis from the power of `base` below the smallest value to that above the largest.
    fn new(values: impl Iterator<Item = f64>, base: f64, places: (f64, f64)) -> Self {
        let ends = values.fold((f64::INFINITY, 0.0f64), |(a, b), v| (a.min(v), b.max(v)));
        let low = base.powf((ends.0.ln() / base.ln() + 1e-9).floor());
        let high = base.powf((ends.1.ln() / base.ln() - 1e-9).ceil());
        Self { ends: (low, if high > low { high } else { low * base }), places }
    }

    fn place(&self, value: f64) -> f64 {
        let (low, high) = self.ends;
        let share = (value / low).ln() / (high / low).ln();
        self.places.0 + share * (self.places.1 - self.places.0)
    }

    /// Powers of `base` along the axis, at most `most` of them.
    fn ticks(&self, base: f64, most: usize) -> Vec<f64> {
        let (low, high) = self.ends;
        let powers = ((high / low).ln() / base.ln()).round() as usize;
        let step = powers.div_ceil(most - 1).max(1);
        (0..=powers).step_by(step).map(|power| low * base.powi(power as i32)).collect()
    }
}

/// A size with a unit, such as 64K.
fn short(bytes: f64) -> String {
    let units = [(f64::from(1 << 30), "G"), (f64::from(1 << 20), "M"), (1024.0, "K")];
    match units.into_iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}{name}", general(bytes / unit)),
        None => general(bytes),
    }
}

fn line(svg: &mut String, from: (f64, f64), to: (f64, f64), color: &str) {
    let ((x1, y1), (x2, y2)) = (from, to);
    let _ = writeln!(
        svg,
        "<line x1=\"{x1:.1}\" y1=\"{y1:.1}\" x2=\"{x2:.1}\" y2=\"{y2:.1}\" stroke=\"{color}\"/>"
    );
}

fn text(svg: &mut String, x: f64, y: f64, anchor: &str, text: &str, more: &str) {
    let escaped = text.replace('&', "&amp;").replace('<', "&lt;");
    let _ = writeln!(
        svg,
        "<text x=\"{x:.1}\" y=\"{y:.1}\" text-anchor=\"{anchor}\" {more}>{escaped}</text>"
    );
}

#[cfg(test)]
mod tests {
    use maypole_algorithms::{DType, RedOp};

    use super::*;
    use crate::report::Measurement;

    fn rows(sizes: &[usize]) -> Vec<TableRow> {
        let row = |&size: &usize| {
            let seconds = 1e-6 + size as f64 / 1e10;
            let busbw = size as f64 / seconds;
            let measured = Some(Measurement { seconds, busbw, ..Measurement::default() });
            TableRow {
                size,
                count: size / 4,
                dtype: DType::Float32,
                op: Some(RedOp::Sum),
                root: None,
                out_of_place: measured.clone(),
                in_place: measured,
                roof: Some(seconds / 2.0),
            }
        };
        sizes.iter().map(row).collect()
    }

    #[test]
    fn every_point_is_inside_a_chart() {
        let svg = svg("all_reduce", 4, &rows(&[8, 1024, 1 << 20]));
        // Three curves of three points in two charts.
        assert_eq!(svg.matches("<polyline").count(), 6);
        assert_eq!(svg.matches("<circle").count(), 18);
        assert!(
            ["float sum", "out of place", "in place", "roof"].iter().all(|name| svg.contains(name))
        );
        for circle in svg.lines().filter(|line| line.starts_with("<circle")) {
            let number = |name: &str| -> f64 {
                circle.split(name).nth(1).unwrap().split('"').nth(1).unwrap().parse().unwrap()
            };
            let (x, y) = (number("cx="), number("cy="));
            assert!(CHARTS.iter().any(|&(left, right)| (left..=right).contains(&x)), "{circle}");
            assert!((TOP..=BOTTOM).contains(&y), "{circle}");
        }
    }

    #[test]
    fn no_size_and_one_size_can_be_drawn() {
        assert!(svg("all_reduce", 1, &rows(&[0])).contains("nothing to show"));
        assert!(!svg("all_reduce", 2, &rows(&[64])).contains("NaN"));
    }

    #[test]
    fn axes_end_at_powers_of_the_base() {
        let axis = LogAxis::new([8.0, 1000.0].into_iter(), 2.0, (0.0, 70.0));
        assert_eq!(axis.ends, (8.0, 1024.0));
        assert_eq!((axis.place(8.0), axis.place(1024.0).round()), (0.0, 70.0));
        assert_eq!(axis.ticks(2.0, 8), [8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0]);
        assert_eq!(axis.ticks(2.0, 5), [8.0, 32.0, 128.0, 512.0]);
        assert_eq!([8.0, 2048.0, 1.5e9].map(short), ["8", "2K", "1.39698G"]);
    }
}
