package org.apache.beam.runners.fnexecution.control;

import java.util.Collections;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.DelayedBundleApplication;
import org.apache.beam.model.fnexecution.v1.BeamFnApi.ProcessBundleResponse;
import org.apache.beam.runners.core.StateInternalsFactory;
import org.apache.beam.runners.core.StateNamespace;
import org.apache.beam.runners.core.StateNamespaces;
import org.apache.beam.runners.core.StateTags;
import org.apache.beam.runners.core.TimerInternalsFactory;
import org.apache.beam.sdk.coders.Coder;
import org.apache.beam.sdk.state.TimeDomain;
import org.apache.beam.sdk.transforms.windowing.BoundedWindow;
import org.apache.beam.sdk.util.CoderUtils;
import org.apache.beam.sdk.values.WindowedValue;
import org.apache.beam.sdk.values.WindowedValues;
import org.joda.time.Instant;

/**
 * Takes the place of Beam 2.70's class of this name, which keeps what a splittable DoFn has deferred in Flink's state
 * and sets a timer to go on with it. It differs in three points, each needed by a source that defers often:
 *
 * <ul>
 *   <li>The names of the states come round again, so a checkpoint does not grow with each deferral (apache/beam 27648).
 *   <li>The delay counts in milliseconds, not in whole seconds, and is never 0. While it lasts no bundle is open, and
 *       Flink's operator tells a watermark only then.
 *   <li>The watermark counts in milliseconds, not in whole seconds.
 * </ul>
 */
public class BundleCheckpointHandlers {

  /** See the outer class. State and timers are of a key, which is the deferred element. */
  public static class StateAndTimerBundleCheckpointHandler<T> implements BundleCheckpointHandler {
    /** An element that is there twice must not have one of them wait while the other one defers so many times. */
    private static final int SLOTS = 256;

    private static final long LEAST_DELAY_MILLIS = 20;

    private static final String PREFIX = "sdf_checkpoint";

    private final TimerInternalsFactory<T> timers;
    private final StateInternalsFactory<T> states;
    private final Coder<WindowedValue<T>> residualCoder;
    private final Coder<BoundedWindow> windowCoder;
    private int slot;

    @SuppressWarnings({"rawtypes", "unchecked"}) // the signature that Beam's operator calls
    public StateAndTimerBundleCheckpointHandler(
        TimerInternalsFactory<T> timers,
        StateInternalsFactory<T> states,
        Coder<WindowedValue<T>> residualCoder,
        Coder windowCoder) {
      this.timers = timers;
      this.states = states;
      this.residualCoder = residualCoder;
      this.windowCoder = windowCoder;
    }

    public static boolean isSdfTimer(String timerId) {
      return timerId.startsWith(PREFIX);
    }

    @Override
    public void onCheckpoint(ProcessBundleResponse response) {
      for (DelayedBundleApplication deferred : response.getResidualRootsList()) {
        if (deferred.hasApplication()) {
          slot = (slot + 1) % SLOTS;
          keep(PREFIX + ":" + slot, deferred);
        }
      }
    }

    private void keep(String tag, DelayedBundleApplication deferred) {
      try {
        byte[] encoded = deferred.getApplication().getElement().toByteArray();
        WindowedValue<T> residual = CoderUtils.decodeFromByteArray(residualCoder, encoded);
        long delay =
            deferred.getRequestedTimeDelay().getSeconds() * 1000L
                + deferred.getRequestedTimeDelay().getNanos() / 1_000_000;
        Instant due = Instant.now().plus(Math.max(delay, LEAST_DELAY_MILLIS));
        Instant watermark = watermarkOf(deferred);
        for (BoundedWindow window : residual.getWindows()) {
          StateNamespace namespace = StateNamespaces.window(windowCoder, window);
          timers
              .timerInternalsForKey(residual.getValue())
              .setTimer(namespace, tag, "", due, watermark, TimeDomain.PROCESSING_TIME);
          states
              .stateInternalsForKey(residual.getValue())
              .state(namespace, StateTags.value(tag, residualCoder))
              .write(
                  WindowedValues.of(
                      residual.getValue(),
                      residual.getTimestamp(),
                      Collections.singletonList(window),
                      residual.getPaneInfo()));
        }
      } catch (Exception e) {
        throw new RuntimeException("Can't keep what a splittable DoFn has deferred", e);
      }
    }

    private static Instant watermarkOf(DelayedBundleApplication deferred) {
      return deferred.getApplication().getOutputWatermarksMap().values().stream()
          .map(t -> Instant.ofEpochMilli(t.getSeconds() * 1000L + t.getNanos() / 1_000_000))
          .min(Instant::compareTo)
          .map(t -> t.isAfter(BoundedWindow.TIMESTAMP_MAX_VALUE) ? BoundedWindow.TIMESTAMP_MAX_VALUE : t)
          .map(t -> t.isBefore(BoundedWindow.TIMESTAMP_MIN_VALUE) ? BoundedWindow.TIMESTAMP_MIN_VALUE : t)
          .orElse(BoundedWindow.TIMESTAMP_MIN_VALUE);
    }
  }
}
