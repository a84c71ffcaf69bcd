//! A schedule as a picture (SVG): time runs down, ranks stand side by side, each with its lanes;
//! steps are boxes, messages arrows in the colour of their channel. The times are those of a
//! [`Timeline`].
//!
//! A box says what its step folds and where the result goes: `i` a chunk of the send buffer, `o` of
//! the receive buffer, `s` of scratch, `•` a message (`•3` three of them), `+` the fold, `→` a step
//! that writes, `⇒` one that finishes the reduction. Where boxes are too small to be read, they
//! have no text.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use crate::cost::Timeline;
use crate::markup::escape;
use crate::schedule::{Channel, Chunk, Operand, Schedule, Step};
use crate::types::Rank;

/// The colours of channels. They differ in hue and lightness, so that most people can tell them
/// apart (after P. Green-Armytage, and Okabe and Ito).
const COLOURS: [&str; 8] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7a4fa3", "#555555"];
const FONT: &str = "font-family=\"Helvetica, Arial, sans-serif\"";
/// Margins and distances in pixels.
const LEFT: f64 = 58.0;
const TOP: f64 = 74.0;
const GAP: f64 = 22.0;
const LINE: f64 = 15.0;
const TALLEST: f64 = 6000.0;
/// The smallest height as a fraction of the width. In flatter pictures, arrows that cross many
/// ranks would lie on each other.
const STEEP: f64 = 0.4;
/// With more lanes than this, over all ranks, steps have no text.
const MOST_READABLE: u32 = 48;
/// The size of text in pixels, and the width of a letter as a fraction of it.
const TEXT: f64 = 9.0;
const LETTER: f64 = 0.58;

/// The picture of `schedule` at the times of `timeline`, which is one of its executions.
pub fn draw(schedule: &Schedule, timeline: &Timeline) -> String {
    let picture = SchedulePicture::new(schedule, timeline);
    let mut text = picture.head();
    picture.grid(&mut text);
    picture.boxes(&mut text);
    picture.arrows(&mut text);
    picture.labels(&mut text);
    picture.legend(&mut text);
    text += "</svg>\n";
    text
}

struct SchedulePicture<'a> {
    schedule: &'a Schedule,
    timeline: &'a Timeline,
    /// By rank where its first lane begins, in pixels.
    left: Vec<f64>,
    lane: f64,
    /// Pixels per second.
    scale: f64,
    end: f64,
    channels: BTreeSet<Channel>,
    width: f64,
    height: f64,
}

impl<'a> SchedulePicture<'a> {
    fn new(schedule: &'a Schedule, timeline: &'a Timeline) -> Self {
        let labels = timeline
            .steps
            .iter()
            .map(|span| label(&schedule.step(span.rank, span.lane, span.index)).chars().count());
        let lanes: u32 = (0..schedule.nranks).map(|rank| schedule.lanes(rank)).sum();
        // Wide enough for every label, unless there are too many lanes to read any.
        let wanted = labels.max().unwrap_or(0) as f64 * TEXT * LETTER + 8.0;
        let lane = if lanes > MOST_READABLE { 14.0 } else { wanted.clamp(30.0, 120.0) };
        let gap = if lanes > MOST_READABLE { 6.0 } else { GAP };
        let mut left = vec![LEFT];
        for rank in 0..schedule.nranks {
            let width = f64::from(schedule.lanes(rank).max(1)) * lane + gap;
            left.push(left[rank as usize] + width);
        }
        let end = timeline.end().max(f64::MIN_POSITIVE);
        let shortest = timeline.steps.iter().map(|span| span.end - span.start);
        let shortest = shortest.filter(|&time| time > 0.0).fold(end, f64::min);
        let width = left[schedule.nranks as usize].max(LEFT + 420.0) + 10.0;
        let scale = (LINE / shortest).max(STEEP * width / end).min(TALLEST / end);
        let channels: BTreeSet<Channel> = timeline.messages.iter().map(|m| m.channel).collect();
        let height = TOP + end * scale + 58.0;
        Self { schedule, timeline, left, lane, scale, end, channels, width, height }
    }

    fn x(&self, rank: Rank, lane: u32) -> f64 {
        self.left[rank as usize] + f64::from(lane) * self.lane
    }

    fn centre(&self, rank: Rank, lane: u32) -> f64 {
        self.x(rank, lane) + self.lane / 2.0
    }

    fn y(&self, time: f64) -> f64 {
        TOP + time * self.scale
    }

    fn colour(&self, channel: Channel) -> &'static str {
        COLOURS[self.channels.iter().take_while(|&&c| c < channel).count() % COLOURS.len()]
    }

    fn head(&self) -> String {
        let Self { schedule, width, height, .. } = self;
        let mut text = format!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width:.0}\" \
             height=\"{height:.0}\" viewBox=\"0 0 {width:.0} {height:.0}\" {FONT} \
             font-size=\"{TEXT}\">\n<rect width=\"100%\" height=\"100%\" \
             fill=\"#ffffff\"/>\n<defs>\n"
        );
        for (number, colour) in COLOURS.iter().enumerate() {
            let _ = writeln!(
                text,
                "<marker id=\"a{number}\" viewBox=\"0 0 8 8\" refX=\"7\" refY=\"4\" \
                 markerWidth=\"6\" markerHeight=\"6\" orient=\"auto\"><path d=\"M0 1L8 4L0 7z\" \
                 fill=\"{colour}\"/></marker>"
            );
        }
        text += "</defs>\n";
        let Schedule { name, collective, nranks, class, .. } = schedule;
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"22\" font-size=\"15\" font-weight=\"bold\" \
             fill=\"#111111\">{collective} by {name}</text>"
        );
        let detail = schedule.detail.as_ref().map_or(String::new(), |d| format!("{}, ", escape(d)));
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"38\" font-size=\"11\" fill=\"#444444\">{detail}{nranks} \
             ranks, class {class}, cost {:.2} µs</text>",
            self.end * 1e6
        );
        text
    }

    /// Ranks, lanes and the axis of time.
    fn grid(&self, text: &mut String) {
        let bottom = self.y(self.end) + 6.0;
        for rank in 0..self.schedule.nranks {
            let lanes = self.schedule.lanes(rank);
            let middle = self.x(rank, 0) + f64::from(lanes.max(1)) * self.lane / 2.0;
            let name = if self.lane < 30.0 { rank.to_string() } else { format!("rank {rank}") };
            let _ = writeln!(
                text,
                "<text x=\"{middle:.1}\" y=\"56\" text-anchor=\"middle\" font-size=\"11\" \
                 font-weight=\"bold\" fill=\"#111111\">{name}</text>"
            );
            for lane in 0..lanes {
                let x = self.centre(rank, lane);
                if lanes > 1 && self.lane >= 30.0 {
                    let _ = writeln!(
                        text,
                        "<text x=\"{x:.1}\" y=\"68\" text-anchor=\"middle\" fill=\"#777777\">lane \
                         {lane}</text>"
                    );
                }
                let _ = writeln!(
                    text,
                    "<line x1=\"{x:.1}\" y1=\"{TOP}\" x2=\"{x:.1}\" y2=\"{bottom:.1}\" \
                     stroke=\"#dddddd\"/>"
                );
            }
        }
        let tick = round_tick(self.end, self.end * self.scale);
        let mut time = 0.0;
        while time <= self.end * 1.0001 {
            let y = self.y(time);
            let _ = writeln!(
                text,
                "<line x1=\"{:.1}\" y1=\"{y:.1}\" x2=\"{:.1}\" y2=\"{y:.1}\" \
                 stroke=\"#999999\"/><text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"end\" \
                 fill=\"#555555\">{} µs</text>",
                LEFT - 14.0,
                LEFT - 9.0,
                LEFT - 17.0,
                y + 3.0,
                number(time * 1e6)
            );
            time += tick;
        }
        let _ = writeln!(
            text,
            "<line x1=\"{0:.1}\" y1=\"{TOP}\" x2=\"{0:.1}\" y2=\"{bottom:.1}\" \
             stroke=\"#999999\"/>",
            LEFT - 9.0
        );
    }

    fn boxes(&self, text: &mut String) {
        for span in &self.timeline.steps {
            let step = self.schedule.step(span.rank, span.lane, span.index);
            let (fill, edge) = match (step.finish, step.inputs.len() > 1) {
                (true, _) => ("#fbdcb8", "#c98a3a"),
                (_, true) => ("#fdf1cf", "#c9a94a"),
                _ => ("#eef2f6", "#9aa7b4"),
            };
            let _ = writeln!(
                text,
                "<rect x=\"{:.1}\" y=\"{:.1}\" width=\"{:.1}\" height=\"{:.1}\" rx=\"2\" \
                 fill=\"{fill}\" stroke=\"{edge}\" stroke-width=\"0.8\"/>",
                self.x(span.rank, span.lane) + 1.0,
                self.y(span.start),
                self.lane - 2.0,
                ((span.end - span.start) * self.scale).max(1.0)
            );
        }
    }

    fn arrows(&self, text: &mut String) {
        let many = self.timeline.messages.len() > 600;
        let (stroke, opacity) = if many { (0.6, 0.35) } else { (1.2, 0.85) };
        for message in &self.timeline.messages {
            let colour = self.colour(message.channel);
            let number = COLOURS.iter().position(|known| *known == colour).unwrap_or(0);
            let head =
                if many { String::new() } else { format!(" marker-end=\"url(#a{number})\"") };
            let _ = writeln!(
                text,
                "<line x1=\"{:.1}\" y1=\"{:.1}\" x2=\"{:.1}\" y2=\"{:.1}\" stroke=\"{colour}\" \
                 stroke-width=\"{stroke}\" opacity=\"{opacity}\"{head}/>",
                self.centre(message.from, message.lanes.0),
                self.y(message.depart),
                self.centre(message.to, message.lanes.1),
                self.y(message.arrive)
            );
        }
    }

    fn labels(&self, text: &mut String) {
        for span in &self.timeline.steps {
            let height = (span.end - span.start) * self.scale;
            let words = label(&self.schedule.step(span.rank, span.lane, span.index));
            let fits = (self.lane - 4.0) / (words.chars().count() as f64 * LETTER);
            let size = fits.min(height - 1.0).min(TEXT);
            if size < 6.0 {
                continue;
            }
            let _ = writeln!(
                text,
                "<text x=\"{:.1}\" y=\"{:.1}\" text-anchor=\"middle\" font-size=\"{size:.1}\" \
                 fill=\"#111111\" stroke=\"#ffffff\" stroke-width=\"2\" stroke-opacity=\"0.7\" \
                 paint-order=\"stroke\">{words}</text>",
                self.centre(span.rank, span.lane),
                self.y((span.start + span.end) / 2.0) + size * 0.35
            );
        }
    }

    fn legend(&self, text: &mut String) {
        let y = self.height - 30.0;
        let mut x = LEFT;
        for &channel in self.channels.iter().take(COLOURS.len()) {
            let colour = self.colour(channel);
            let _ = writeln!(
                text,
                "<line x1=\"{x:.1}\" y1=\"{0:.1}\" x2=\"{1:.1}\" y2=\"{0:.1}\" \
                 stroke=\"{colour}\" stroke-width=\"2\"/><text x=\"{2:.1}\" y=\"{y:.1}\" \
                 fill=\"#333333\">channel {channel}</text>",
                y - 3.0,
                x + 18.0,
                x + 22.0
            );
            x += 76.0;
        }
        let _ = writeln!(
            text,
            "<text x=\"{LEFT}\" y=\"{:.1}\" fill=\"#333333\">i: send buffer, o: receive buffer, \
             s: scratch, •: message, +: fold, ⇒: finishes the reduction</text>",
            y + 16.0
        );
    }
}

/// A short text for a step.
fn label(step: &Step) -> String {
    let arrow = if step.finish { "⇒" } else { "→" };
    format!("{} {arrow} {}", side(&step.inputs, "+"), side(&step.outputs, ","))
}

fn side(operands: &[Operand], between: &str) -> String {
    let mut words: Vec<String> = Vec::new();
    let mut messages = 0;
    for operand in operands {
        if let Operand::Local(chunk) = operand {
            messages = 0;
            words.push(match chunk {
                Chunk::Input(i) => format!("i{i}"),
                Chunk::Output(i) => format!("o{i}"),
                Chunk::Scratch(i) => format!("s{i}"),
            });
            continue;
        }
        // Consecutive messages are counted.
        messages += 1;
        if messages > 1 {
            words.pop();
        }
        words.push(if messages > 1 { format!("•{messages}") } else { "•".to_owned() });
    }
    words.join(between)
}

/// A round time between ticks, which gives a tick about every 60 pixels.
fn round_tick(end: f64, pixels: f64) -> f64 {
    let rough = end * 60.0 / pixels;
    let power = 10f64.powf(rough.log10().floor());
    [1.0, 2.0, 5.0, 10.0].into_iter().map(|m| m * power).find(|t| *t >= rough).unwrap_or(rough)
}

/// A number without trailing zeros.
fn number(value: f64) -> String {
    let text = format!("{value:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schedule::operand::{input, output, peer, scratch};

    #[test]
    fn labels_are_short() {
        let step = Step::new([input(0), peer(1, 0)], [output(0), peer(5, 1), peer(6, 1)]);
        assert_eq!(label(&step), "i0+• → o0,•2");
        let step = Step::new([scratch(1), scratch(2)], [output(7)]).finishing();
        assert_eq!(label(&step), "s1+s2 ⇒ o7");
    }

    #[test]
    fn ticks_are_round() {
        assert_eq!(round_tick(100.0, 600.0), 10.0);
        assert_eq!(round_tick(70.0, 600.0), 10.0);
        assert_eq!(number(0.250), "0.25");
        assert_eq!(number(10.0), "10");
    }
}
